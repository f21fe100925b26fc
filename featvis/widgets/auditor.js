// The auditor: an attack, its strength and a unit are chosen; pictures and the p-values of all checks follow.
//
// Everything was computed before; nothing is fetched, so a published page does all that a notebook does.

function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value == null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}
const small = (p) => (p == null ? "not asked" : p < 0.001 ? "p < .001" : `p = ${p.toFixed(3).replace(/^0/, "")}`);
const percent = (share) => `${(100 * share).toFixed(1)}%`;
const NAMES = ["visualization before", "visualization after", "strongest exemplar after"];

function render({ model, el }) {
  const root = h("div", { class: "featvis-auditor", "data-lm-suppress-shortcuts": "true" });
  root.addEventListener("keydown", (event) => event.stopPropagation()); // else JupyterLab takes the arrow keys
  const data = model.get("data");
  const save = (changes) => {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  };

  const attacks = h("select", { "aria-label": "Attack", onchange: () => {
    const attack = Number(attacks.value);
    save({ attack, strength: data.attacks[attack].cases.length - 1, unit: 0 });
  } }, data.attacks.map(({ name }, i) => h("option", { value: i }, name)));
  const meaning = h("span", { class: "meaning" }), shown = h("output");
  const strength = h("input", { type: "range", min: 0, step: 1, "aria-label": "Strength", oninput: () => save({ strength: strength.valueAsNumber }) });
  const strengthRow = h("label", {}, h("span", {}, meaning, shown), strength);
  const units = h("div", { class: "units", role: "group", "aria-label": "Unit" });
  const pictures = NAMES.map((name) => {
    const picture = h("div", { class: "picture", role: "img", "aria-label": name });
    return { picture, figure: h("figure", {}, picture, h("figcaption", {}, name)) };
  });
  const said = h("p", { class: "words", "aria-live": "polite" });
  const bars = h("div", { class: "bars" });
  root.append(
    h("div", { class: "knobs" }, h("label", {}, h("span", {}, "attack"), attacks), strengthRow, h("div", { class: "label" }, "unit", units)),
    h("div", { class: "body" }, h("div", { class: "pictures" }, pictures.map(({ figure }) => figure)), h("div", { class: "verdicts" }, said, bars)));
  el.replaceChildren(root);

  function place(picture, number) {
    const rows = Math.ceil(data.tiles / data.columns), x = number % data.columns, y = Math.floor(number / data.columns);
    const part = (i, n) => (n > 1 ? (100 * i) / (n - 1) : 0);
    picture.style.backgroundImage = `url(${data.sheet})`;
    picture.style.backgroundSize = `${100 * data.columns}% ${100 * rows}%`;
    picture.style.backgroundPosition = `${part(x, data.columns)}% ${part(y, rows)}%`;
    picture.dataset.tile = number;
  }

  function bar(name, p) {
    // The bar's length is -log10 p, so that what stands out is long.
    const most = -Math.log10(data.smallest), length = p == null ? 0 : Math.max(0, -Math.log10(p)) / most;
    const out = p != null && p <= data.level;
    const limit = (100 * -Math.log10(data.level)) / most;
    return h("div", { class: `check${out ? " out" : ""}`, "data-check": name, "data-p": p },
      h("span", { class: "name" }, name),
      h("span", { class: "track" }, h("i", { style: `width:${(100 * Math.min(1, length)).toFixed(1)}%` }), h("b", { style: `left:${limit.toFixed(1)}%` })),
      h("span", { class: "value" }, small(p)));
  }

  function paint() {
    const attack = data.attacks[model.get("attack")];
    const at = Math.min(model.get("strength"), attack.cases.length - 1), found = attack.cases[at];
    const which = Math.min(model.get("unit"), found.units.length - 1), unit = found.units[which];
    attacks.value = String(model.get("attack"));
    strengthRow.hidden = attack.cases.length < 2;
    meaning.textContent = attack.strength;
    shown.textContent = String(found.strength);
    strength.max = attack.cases.length - 1;
    strength.value = at;
    strength.setAttribute("aria-valuetext", String(found.strength));
    units.replaceChildren(...found.units.map(({ name }, i) =>
      h("button", { type: "button", "aria-pressed": String(i === which), onclick: () => save({ unit: i }) }, name)));
    pictures.forEach(({ picture }, i) => place(picture, unit.pictures[i]));
    const out = data.checks.filter((_, i) => unit.p[i] != null && unit.p[i] <= data.level);
    said.className = `words ${unit.all != null && unit.all <= data.level ? "out" : "in"}`;
    said.textContent = unit.all == null ? `${unit.name} never responded: there is nothing to judge.`
      : `${unit.all <= data.level ? "Stands out" : "Does not stand out"} (${small(unit.all)}, all checks together)`
        + `${out.length ? `: ${out.join(", ")}` : ""}. On natural images, ${percent(found.same / found.images)} of answers are as before.`;
    bars.replaceChildren(...data.checks.map((name, i) => bar(name, unit.p[i])),
      h("p", { class: "note" }, `A bar that passes the line has p ≤ ${data.level}, corrected for all checks: so do ${percent(data.level)} of honest units.`));
    Object.assign(root.dataset, { attack: attack.name, strength: found.strength, unit: unit.name });
  }
  const names = ["attack", "strength", "unit"];
  for (const name of names) model.on(`change:${name}`, paint);
  paint();
  return () => {
    for (const name of names) model.off(`change:${name}`, paint);
  };
}

export default { render };
