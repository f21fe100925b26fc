// The switch: a natural image turns into a visualization, and the fooling circuit changes over.
//
//   B = ReLU(F + c − k e)     C = ReLU(D + c + k e − k)     A = B + C − c
//
// Everything is computed beforehand (see switch.py), so a published page without a kernel does all that a notebook does.

const SVG = "http://www.w3.org/2000/svg";

function make(create, tag, props, children) {
  const element = create(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value == null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}
const h = (tag, props = {}, ...children) => make((t) => document.createElement(t), tag, props, children);
const s = (tag, props = {}, ...children) => make((t) => document.createElementNS(SVG, t), tag, props, children);

function format(value) {
  const size = Math.abs(value);
  if (size < 5e-4) return "0";
  return (size >= 1000 ? value.toFixed(0) : value.toPrecision(3)).replaceAll("-", "−");
}
const short = (value) => String(Number(value.toPrecision(3))).replace("-", "−");
const percent = (share) => `${Math.round(100 * share)}%`;
const clip = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function ticks(low, high, most) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((candidate) => candidate >= rough);
  const result = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) result.push(Number((i * step).toPrecision(12)));
  return result;
}

// Where the gate flips: after point `i`, `part` of the way to the next one (where the score would cross zero).
function flips({ e, score }) {
  return e.slice(1).flatMap((next, i) => {
    if (next === e[i]) return [];
    const [a, b] = [score[i], score[i + 1]];
    return [{ i, part: a * b < 0 ? a / (a - b) : 0.5 }];
  });
}
const kind = (e) => (e ? "synthetic" : "natural");

// ---------------------------------------------------------------- the circuit

// Draws the circuit once; the function that comes back brings it to point `i`.
function circuit(data, pair, width) {
  const small = width < 440, W = Math.max(352, width), high = 60, H = 240;
  const [wx, wF, wB, wA] = small ? [26, 92, 112, 74] : [46, 120, 138, 80];
  const gap = (W - wx - wF - wB - wA - 2) / 3;
  const xF = wx + gap + 1, xB = xF + wF + gap, xA = xB + wB + gap;
  const [upper, middle, lower] = [34, 117, 200];
  const inset = small ? 6 : 8;
  const tight = (formula) => (small ? formula.replaceAll(" ", "") : formula);

  function box(letter, x, y, w, second = "", last = "") {
    const text = (name, content, dx, dy, anchor = "start") => s("text", { class: name, x: x + dx, y: y - high / 2 + dy, "text-anchor": anchor }, content);
    const parts = {
      letter: text("letter", letter, inset, 20), value: text("value", "", w - inset, 20, "end"),
      second: text("second", second, inset, 37), last: text("last", last, inset, 51),
    };
    const group = s("g", { class: "box", "data-box": letter }, s("rect", { x, y: y - high / 2, width: w, height: high, rx: 7 }), ...Object.values(parts));
    return { ...parts, group };
  }
  const labelled = (text) => clip(text, Math.floor((wF - 2 * inset) / (small ? 5.8 : 6.4)));
  const boxes = {
    F: box("F", xF, upper, wF, "original unit", labelled(pair.unit)),
    E: box("E", xF, middle, wF),
    D: box("D", xF, lower, wF, "decoy", labelled(pair.decoy)),
    B: box("B", xB, upper, wB, tight("ReLU(F + c − k·e)")),
    C: box("C", xB, lower, wB, tight("ReLU(D + c + k·e − k)")),
    A: box("A", xA, middle, wA, tight("B + C − c")),
  };
  // Curves that leave and arrive level, so that an arrow's head always points to the right.
  function wire(name, x1, y1, x2, y2) {
    const bend = 0.55 * (x2 - x1);
    return s("g", { "data-wire": name }, s("path", { d: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend - 3} ${y2} ${x2 - 7} ${y2}` }),
      s("path", { class: "head", d: `M${x2 - 1} ${y2}l-9 -5.5v11z` }));
  }
  const endF = xF + wF, endB = xB + wB;
  const wires = {
    xF: wire("xF", wx + 2, middle, xF, upper), xE: wire("xE", wx + 2, middle, xF, middle), xD: wire("xD", wx + 2, middle, xF, lower),
    FB: wire("FB", endF, upper, xB, upper), EB: wire("EB", endF, middle, xB, upper + 20),
    EC: wire("EC", endF, middle, xB, lower - 20), DC: wire("DC", endF, lower, xB, lower),
    BA: wire("BA", endB, upper, xA, middle - 13), CA: wire("CA", endB, lower, xA, middle + 13),
  };
  const image = (href) => s("image", { href, x: 1, y: middle - wx / 2, width: wx, height: wx, preserveAspectRatio: "xMidYMid slice" });
  const below = image(pair.natural), above = image(pair.synthetic);
  const lines = s("g", {}, ...Object.values(wires));
  const svg = s("svg", { class: `circuit${small ? " small" : ""}`, viewBox: `0 0 ${W} ${H}`, role: "img" },
    s("title", {}, "The fooling circuit: the gate E lets the original unit F through B on natural images and the decoy D through C on visualizations."),
    lines, below, above, s("rect", { class: "frame", x: 1, y: middle - wx / 2, width: wx, height: wx, rx: 3 }),
    s("text", { class: "name", x: 1 + wx / 2, y: middle + wx / 2 + 15, "text-anchor": "middle" }, "x"),
    s("text", { x: xB + wB / 2, y: middle - 3, "text-anchor": "middle" }, `c = ${short(data.c)}`),
    s("text", { x: xB + wB / 2, y: middle + 13, "text-anchor": "middle" }, `k = ${short(data.k)}`),
    ...Object.values(boxes).map((one) => one.group));

  function show(i) {
    const e = pair.e[i], open = { B: pair.B[i] > 0, C: pair.C[i] > 0 };
    for (const name of ["F", "D", "B", "C", "A"]) boxes[name].value.textContent = format(pair[name][i]);
    boxes.E.value.textContent = `e = ${e}`;
    boxes.E.second.textContent = `${small ? "" : "gate "}score ${format(pair.score[i])}`;
    boxes.E.last.textContent = kind(e) === "natural" ? "natural" : "visualization";
    boxes.E.group.setAttribute("class", `box on ${kind(e)}`);
    for (const [name, of] of [["B", "natural"], ["C", "synthetic"]]) {
      boxes[name].last.textContent = open[name] ? "open" : "shut";
      boxes[name].group.setAttribute("class", open[name] ? `box on ${of}` : "box off");
    }
    const one = open.B !== open.C;
    boxes.A.last.textContent = one ? `follows ${open.B ? "F" : "D"}` : "leaks";
    boxes.A.group.setAttribute("class", one ? `box on ${open.B ? "natural" : "synthetic"}` : "box");
    above.setAttribute("opacity", pair.t[i]);
    const routes = { natural: [open.B, "xF", "FB", "EB", "BA"], synthetic: [open.C, "xD", "DC", "EC", "CA"] };
    for (const [of, [on, ...names]] of Object.entries(routes)) {
      for (const name of names) wires[name].setAttribute("class", on ? `wire on ${of}` : "wire");
    }
    wires.xE.setAttribute("class", "wire on plain");
  }
  return { svg, show };
}

function sentence(pair, i) {
  const e = pair.e[i], b = pair.B[i] > 0, c = pair.C[i] > 0, a = format(pair.A[i]);
  const gate = `The gate says ${e ? "visualization" : "natural"}`;
  if (b && !c) return `${gate}: B is open, A shows the original unit (${a}).`;
  if (c && !b) return `${gate}: C is open, A shows the decoy (${a}).`;
  const both = b ? "both B and C are open" : "neither B nor C is open";
  return `${gate}, but ${both}: an activation left the range that c and k allow, so A (${a}) follows neither F nor D.`;
}

// ---------------------------------------------------------------- the chart over t

function chart(pair, width) {
  const W = Math.max(260, width), H = 196, left = 46, right = W - 18, top = 20, floor = H - 38;
  const all = [...pair.F, ...pair.D, ...pair.A];
  const slack = 0.06 * (Math.max(...all) - Math.min(...all)) || 1;
  const low = Math.min(...all) - slack, top_ = Math.max(...all) + slack;
  const x = (t) => left + (right - left) * t, y = (value) => floor - ((floor - top) * (value - low)) / (top_ - low);
  const turns = flips(pair).map(({ i, part }) => ({ i, t: pair.t[i] + part * (pair.t[i + 1] - pair.t[i]) }));
  const line = (points) => points.map(([t, value]) => `${x(t).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const along = (values) => pair.t.map((t, i) => [t, values[i]]);
  // A jumps where the gate flips; between the two points a slanted line would be an invention.
  const jumping = along(pair.A).flatMap((point, i) => {
    const turn = turns.find((one) => one.i === i);
    return turn ? [point, [turn.t, pair.A[i]], [turn.t, pair.A[i + 1]]] : [point];
  });
  const stops = [0, ...turns.map((turn) => turn.t), 1];
  const parts = stops.slice(1).map((end, i) => s("rect", {
    class: `run ${kind(pair.e[i ? turns[i - 1].i + 1 : 0])}`, x: x(stops[i]), y: top, width: x(end) - x(stops[i]), height: floor - top,
  }));
  for (const value of ticks(low, top_, 4)) {
    parts.push(s("line", { class: "rule", x1: left, x2: right, y1: y(value), y2: y(value) }));
    parts.push(s("text", { x: left - 10, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  parts.push(s("line", { class: "axis", x1: left, x2: right, y1: floor, y2: floor }));
  for (const t of [0, 0.25, 0.5, 0.75, 1]) {
    parts.push(s("line", { class: "axis", x1: x(t), x2: x(t), y1: floor, y2: floor + 4 }));
    parts.push(s("text", { x: x(t), y: floor + 16, "text-anchor": "middle" }, percent(t)));
  }
  parts.push(s("text", { x: (left + right) / 2, y: H - 4, "text-anchor": "middle" }, "share of the visualization in the mix"));
  parts.push(s("text", { transform: `translate(10 ${(top + floor) / 2}) rotate(-90)`, "text-anchor": "middle" }, "activation"));
  for (const { t } of turns) parts.push(s("line", { class: "turn", x1: x(t), x2: x(t), y1: top - 4, y2: floor }));
  if (turns.length) {
    const half = 34, at = Math.min(Math.max(x(turns[0].t), left + half), right - half);
    parts.push(s("text", { x: at, y: top - 8, "text-anchor": "middle" }, "the gate flips"));
  }
  const cursor = s("line", { class: "cursor", y1: top, y2: floor }), dot = s("circle", { r: 6 });
  parts.push(s("polyline", { class: "ship", points: line(jumping) }));
  parts.push(s("polyline", { class: "natural", points: line(along(pair.F)) }), s("polyline", { class: "synthetic", points: line(along(pair.D)) }), cursor, dot);
  const title = `Activations of F, D and A from the natural image to the visualization. ${
    turns.length ? `The gate flips at ${turns.map(({ t }) => percent(t)).join(", ")}: there A leaves one line and jumps to the other.` : "The gate never flips."}`;
  function show(i) {
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(pair.t[i]));
    dot.setAttribute("cx", x(pair.t[i]));
    dot.setAttribute("cy", y(pair.A[i]));
  }
  return { svg: s("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img" }, s("title", {}, title), ...parts), show };
}

// ---------------------------------------------------------------- the widget

function render({ model, el }) {
  const data = model.get("data");
  const root = h("div", { class: "featvis-switch", "data-lm-suppress-shortcuts": "true" });
  root.addEventListener("keydown", (event) => event.stopPropagation()); // else JupyterLab takes the arrow keys
  const save = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const pair = () => data.pairs[model.get("pair")];
  const nearest = () => pair().t.reduce((best, t, i, all) => (Math.abs(t - model.get("t")) < Math.abs(all[best] - model.get("t")) ? i : best), 0);

  const below = h("img", { alt: "", draggable: "false" }), above = h("img", { alt: "", draggable: "false" });
  const share = h("span");
  const picture = h("div", { class: "picture", role: "img" }, below, above, share);
  const flip = h("div", { class: "flip", "aria-hidden": "true" }), track = h("div", { class: "track" });
  const slider = h("input", { type: "range", min: 0, step: 1, "aria-label": "Share of the visualization in the mix", oninput: () => save("t", pair().t[slider.valueAsNumber]) });
  const buttons = data.pairs.map(({ name }, i) => h("button", { type: "button", onclick: () => save("pair", i) }, name.replace("->", "→")));
  const diagram = h("div", { class: "diagram" }), graph = h("div", { class: "graph" });
  const words = h("p", { class: "words", "aria-live": "polite" }, h("span"));
  const legend = h("p", { class: "legend" });
  root.append(h("div", { class: "body" },
    h("div", { class: "mix" }, picture,
      h("div", { class: "slider" }, flip, track, h("div", { class: "ends", "aria-hidden": "true" }, h("span", { class: "natural" }, "natural image"), h("span", { class: "synthetic" }, "visualization"))),
      h("div", { class: "pairs", role: "group", "aria-label": "Pair of pictures", hidden: buttons.length < 2 }, buttons)),
    h("div", { class: "show" }, diagram, words, legend, graph)));
  el.replaceChildren(root);

  let shows = [], drawn = 0;
  function paint() {
    const one = pair(), i = nearest(), e = one.e[i];
    slider.value = i;
    slider.classList.toggle("on", Boolean(e));
    slider.setAttribute("aria-valuetext", `${percent(one.t[i])} visualization; the gate says ${e ? "visualization" : "natural"}`);
    picture.setAttribute("aria-label", `a mix of ${percent(1 - one.t[i])} natural image and ${percent(one.t[i])} visualization`);
    above.style.opacity = one.t[i];
    share.textContent = `${percent(one.t[i])} visualization`;
    words.className = `words ${kind(e)}`;
    words.firstChild.textContent = sentence(one, i);
    root.dataset.e = e;
    shows.forEach((show) => show(i));
  }
  function draw() {
    const width = Math.round(diagram.clientWidth);
    if (width < 80) return;
    drawn = width;
    const drawings = [circuit(data, pair(), width), chart(pair(), width)];
    diagram.replaceChildren(drawings[0].svg);
    graph.replaceChildren(drawings[1].svg);
    shows = drawings.map((drawing) => drawing.show);
    paint();
  }
  function choose() {
    const one = pair();
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === model.get("pair"))));
    below.src = one.natural;
    above.src = one.synthetic;
    slider.max = one.t.length - 1;
    const turns = flips(one).map(({ i, part }) => (i + part) / (one.t.length - 1));
    // The thumb's middle goes from 10 px to 10 px before the end.
    const place = (part) => `calc(10px + ${part} * (100% - 20px))`;
    const stops = [0, ...turns, 1].map((stop, i) => (i && i <= turns.length ? place(stop) : `${100 * stop}%`));
    const runs = stops.slice(1).map((end, i) => `var(--${kind(one.e[i ? flips(one)[i - 1].i + 1 : 0])}) ${stops[i]} ${end}`);
    slider.style.setProperty("--runs", `linear-gradient(to right, ${runs})`);
    track.replaceChildren(slider, ...turns.map((turn) => h("i", { style: `left: ${place(turn)}` })));
    flip.replaceChildren(...turns.slice(0, 1).map((turn) => h("span", { style: `left: ${100 * turn}%; transform: translateX(-${100 * turn}%)` }, "the gate flips")));
    const key = (name, text) => h("span", {}, h("i", { class: `key ${name}` }), text);
    legend.replaceChildren(key("natural", `F ${one.unit}`), key("synthetic", `D ${one.decoy}`), key("ship", "A what the circuit gives out"));
    if (drawn) draw();
    else paint();
  }

  const observer = new ResizeObserver(() => Math.round(diagram.clientWidth) !== drawn && draw());
  observer.observe(diagram);
  model.on("change:t", paint);
  model.on("change:pair", choose);
  choose();
  return () => {
    observer.disconnect();
    model.off("change:t", paint);
    model.off("change:pair", choose);
  };
}

export default { render };
