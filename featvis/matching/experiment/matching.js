// The matching experiment: rows of images on the left, rows to be put beside them.
//
// One module for all places where it runs: the notebook and the published page (anywidget, at the end of this file),
// the experiment's server (session.js) and jsPsych (jspsych-matching.js). They share `play`, which shows one trial, and
// `run`, which leads through a session. Text reaches the page as text nodes only.
//
// A trial is {id, part, kind, left: [[url, ...], ...], right: [[url, ...], ...]}; practice trials also have `answer`,
// the row on the left for each row on the right.

export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value == null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}
const letter = (i) => "ABCDE"[i];
const SURE = ["guessed", "unsure", "sure"];
const FAR = 6; // pixels that a pointer moves before a press becomes a drag
const HOW = "drag it, or tap it and then its place, or press its number and then a letter.";
const BY_TOUCH = "tap it, then tap its place."; // a finger scrolls where a mouse drags, and a phone has no keys
let serial = 0;

// ---------------------------------------------------------------- one trial

// Shows a trial in `el`; resolves to {trial, match, confidence, rt, first, moves, away, width} when it is finished.
// `match[j]` is the row on the left beside which row j was put. Times are milliseconds of the browser's
// high-resolution clock, from the frame after all images were decoded.
export function play(el, trial, { feedback = false, progress = "" } = {}) {
  const k = trial.left.length, n = trial.left[0].length, group = `featvis-sure-${serial++}`;
  const held = [...Array(k).fill(null), ...Array(k).keys()]; // places 0 ... k-1 beside the rows, then the pool
  let picked = null, dragged = false, started = null, first = null, moves = 0, away = 0, left = null;
  let beside, over = false, sent = false; // what is put after `over` does not count; after `sent` the answer is on its way

  const row = (images, whose) => images.map((src, i) => h("img", { src, alt: `image ${i + 1} of ${n}, ${whose}`, draggable: "false" }));
  const cards = trial.right.map((images, j) => h("span", { class: "deal" }, h("b", {}, String(j + 1)), h("span", { class: "strip" }, row(images, `row ${j + 1}`))));
  const places = held.map((_, place) => h("button", { type: "button", class: `place ${place < k ? "slot" : "pool"}`, "data-place": place, onclick: () => press(place) }));
  const say = h("p", { class: "say", "aria-live": "polite" });
  const sure = SURE.map((name, i) => h("label", {}, h("input", { type: "radio", name: group, value: i + 1, onchange: paint }), h("span", {}, name)));
  const next = h("button", { type: "button", class: "go", onclick: finish }, "Next");
  const heading = h("h3", { tabindex: -1 }, "Which rows belong together?"), hint = h("p", { class: "hint" });
  const root = h("div", { class: "trial", "data-trial": trial.id },
    h("div", { class: "top" }, heading, h("span", { class: "count" }, progress)),
    h("div", { class: "board" }, trial.left.map((images, i) => h("div", { class: "pair" },
      h("div", { class: "fixed", role: "group", "aria-label": `Row ${letter(i)}` }, h("b", {}, letter(i)), h("span", { class: "strip" }, row(images, `row ${letter(i)}`))), places[i]))),
    hint,
    h("div", { class: "waiting", role: "group", "aria-label": "Rows to be placed" }, places.slice(k)),
    h("fieldset", { class: "sure" }, h("legend", {}, "How sure are you?"), sure), say, next);
  root.style.setProperty("--n", n);

  const confidence = () => Number(root.querySelector(`input[name="${group}"]:checked`)?.value ?? 0);
  const complete = () => held.slice(0, k).every((card) => card != null);
  const name = (place) => (place < k ? `${beside} row ${letter(place)}` : "not placed");

  function paint() {
    const fixed = root.querySelector(".fixed");
    beside = places[0].offsetTop < fixed.offsetTop + fixed.offsetHeight ? "beside" : "under"; // on a narrow page
    places.forEach((button, place) => {
      const card = held[place];
      button.replaceChildren(...(card == null ? [h("span", { class: "empty" }, place < k ? `? ${letter(place)}` : "")] : [cards[card]]));
      button.setAttribute("aria-label", card == null ? (place < k ? `Place ${beside} row ${letter(place)}: empty` : "Empty place") : `Row ${card + 1}, ${name(place)}`);
      button.setAttribute("aria-pressed", String(picked === place));
      button.classList.toggle("full", card != null);
      button.disabled = over || (place >= k && card == null && picked == null);
    });
    root.classList.toggle("picking", picked != null);
    root.classList.toggle("complete", complete()); // then rows only change places among each other
    next.disabled = sent || (!over && !(complete() && confidence()));
    hint.textContent = `Put each of these ${beside} the row that shows the same thing to the network: ${matchMedia("(pointer: coarse)").matches ? BY_TOUCH : HOW}`;
  }
  function unpick() {
    if (picked != null) say.textContent = "No row is picked.";
    picked = null;
  }
  function move(from, to) {
    [held[from], held[to]] = [held[to], held[from]];
    moves += 1;
    first ??= performance.now() - started;
    say.textContent = `Row ${held[to] + 1} is ${name(to)}.${complete() && !confidence() ? " How sure are you?" : ""}`;
  }
  function press(place) {
    if (dragged || over || started == null) return void (dragged = false);
    if (picked == null) {
      if (held[place] == null) say.textContent = "Choose one of the rows below first.";
      else {
        picked = place;
        say.textContent = `Row ${held[place] + 1} is picked: choose its place.`;
      }
    } else {
      if (picked === place) unpick();
      else move(picked, place);
      picked = null;
    }
    paint();
  }
  function key(event) {
    if (over || started == null || event.ctrlKey || event.metaKey || event.altKey) return;
    const number = Number(event.key) - 1, slot = "abcde".indexOf(event.key.toLowerCase());
    if (event.key === "Escape" && picked != null) unpick();
    else if (event.key.length === 1 && number >= 0 && number < k) {
      picked = held.indexOf(number);
      say.textContent = `Row ${number + 1} is picked: press a letter from A to ${letter(k - 1)}.`;
    } else if (event.key.length === 1 && slot >= 0 && slot < k && picked != null) {
      if (picked === slot) unpick();
      else move(picked, slot);
      picked = null;
      paint();
      places[slot].focus(); // a place in the pool that is empty now cannot keep the focus
    } else return;
    event.preventDefault();
    paint();
  }
  root.addEventListener("keydown", key);

  // By mouse or pen a row can be dragged; a finger taps, because dragging would scroll the page.
  root.addEventListener("pointerdown", (event) => {
    const from = event.target.closest?.(".place.full");
    dragged = false;
    if (!from || event.pointerType === "touch" || event.button !== 0 || over || started == null) return;
    const begin = [event.clientX, event.clientY];
    let ghost = null;
    const follow = (moved) => {
      if (!ghost && Math.hypot(moved.clientX - begin[0], moved.clientY - begin[1]) < FAR) return;
      if (!ghost) {
        ghost = from.firstChild.cloneNode(true);
        ghost.classList.add("ghost");
        root.append(ghost);
        from.classList.add("lifted");
      }
      ghost.style.left = `${moved.clientX}px`;
      ghost.style.top = `${moved.clientY}px`;
      const under = document.elementFromPoint(moved.clientX, moved.clientY)?.closest(".place");
      places.forEach((button) => button.classList.toggle("over", button === under && button !== from));
    };
    const drop = (end) => {
      for (const [type, listener] of Object.entries(listeners)) window.removeEventListener(type, listener);
      places.forEach((button) => button.classList.remove("over", "lifted"));
      if (!ghost) return;
      ghost.remove();
      dragged = true; // the click that may follow is not a press
      setTimeout(() => (dragged = false));
      const to = end.type === "pointerup" && document.elementFromPoint(end.clientX, end.clientY)?.closest(".place");
      if (over) return; // confirmed by a key while it was dragged
      if (to && root.contains(to) && to !== from) move(Number(from.dataset.place), Number(to.dataset.place));
      else unpick();
      picked = null;
      paint();
      if (to) to.focus({ preventScroll: true });
    };
    const listeners = { pointermove: follow, pointerup: drop, pointercancel: drop };
    for (const [type, listener] of Object.entries(listeners)) window.addEventListener(type, listener);
  });

  const watch = () => {
    if (document.hidden) left = performance.now();
    else if (left != null) [away, left] = [away + performance.now() - left, null];
  };
  document.addEventListener("visibilitychange", watch);

  let resolve, answer;
  // Until whoever waits for the answer has kept it and shows something else, the trial stays as it was confirmed.
  function send() {
    over = sent = true;
    picked = null;
    root.querySelector(".sure").disabled = true;
    paint();
    resolve(answer);
  }
  function finish() {
    if (over) return send();
    const rt = performance.now() - started, match = trial.right.map((_, j) => held.indexOf(j));
    document.removeEventListener("visibilitychange", watch);
    const ms = (value) => Math.round(10 * value) / 10;
    answer = { trial: trial.id, match, confidence: confidence(), rt: ms(rt), first: ms(first), moves, away: ms(away), width: window.innerWidth };
    if (!feedback) {
      say.textContent = "";
      return send();
    }
    over = true;
    picked = null;
    const hits = match.filter((slot, j) => slot === trial.answer[j]).length;
    paint();
    match.forEach((slot, j) => places[slot].classList.add(slot === trial.answer[j] ? "right" : "wrong"));
    const truth = trial.answer.map((slot, j) => `${j + 1} belongs to ${letter(slot)}`).join(", ");
    say.textContent = hits === k ? "All right." : `${hits} of ${k} right: ${truth}.`;
    root.querySelector(".sure").disabled = true;
    next.textContent = "Go on";
    next.focus();
  }

  el.replaceChildren(root);
  paint();
  heading.focus({ preventScroll: true });
  if (root.getBoundingClientRect().top < 0) root.scrollIntoView();
  const images = [...root.querySelectorAll("img"), ...cards.flatMap((card) => [...card.querySelectorAll("img")])];
  Promise.all(images.map((image) => loaded(image, say))).then(() => requestAnimationFrame(() => {
    say.textContent = "";
    started = performance.now();
    root.dataset.ready = "";
  }));
  return new Promise((done) => (resolve = done));
}

// A trial without its pictures measures nothing: what could not be loaded is asked for again.
async function loaded(image, say) {
  for (let pause = 500; ; pause = Math.min(2 * pause, 8000)) {
    try {
      await image.decode();
      return;
    } catch {
      if (!image.isConnected) return;
    }
    say.textContent = "A picture could not be loaded; trying again …";
    await new Promise((resolve) => setTimeout(resolve, pause));
    image.src = image.src;
  }
}

// ---------------------------------------------------------------- a session

// Shows a page of text with buttons; resolves to the index of the button that was pressed.
export function page(el, title, body, buttons = ["Go on"]) {
  return new Promise((resolve) => {
    const heading = h("h3", { tabindex: -1 }, title);
    const paragraphs = body.map((part) => (typeof part === "string" ? h("p", {}, part) : part));
    const row = h("div", { class: "buttons" }, buttons.map((text, i) => h("button", { type: "button", class: i ? "" : "go", onclick: () => resolve(i) }, text)));
    el.replaceChildren(h("div", { class: "page" }, heading, paragraphs, buttons.length ? row : null));
    heading.focus({ preventScroll: true });
  });
}

// After a reload, or in a second window: how far the session is.
function resumed(study, next, main) {
  const practice = study.trials.length - main;
  const done = next > practice ? `${next - practice} of ${main} trials` : `${next} of ${practice} practice trials`;
  return next && study.resumed ? [study.resumed.replace("{done}", done)] : [];
}

// Leads through a study from `store.next` on: consent, instruction, trials, breaks. `store.answer(answer)` must resolve
// only when the answer is kept. `study` has texts (lists of paragraphs) and `trials`; false if consent was refused.
export async function run(el, study, store) {
  if (study.consent && !store.consented) {
    const refused = await page(el, "Do you want to take part?", study.consent, ["I agree", "No, thank you"]);
    await store.event?.("consent", { agreed: !refused });
    if (refused) {
      page(el, "Thank you", ["Only your refusal was recorded. You can close this page."], []);
      return false;
    }
  }
  const main = study.trials.filter((trial) => trial.part !== "practice").length;
  if (study.instruction) await page(el, "What to do", [...resumed(study, store.next, main), ...study.instruction], [store.next ? "Go on" : "Start"]);
  let before = null;
  for (let i = store.next ?? 0; i < study.trials.length; i++) {
    const trial = study.trials[i], practice = trial.part === "practice", done = i - (study.trials.length - main);
    if (before === "practice" && !practice) await page(el, "That was the practice", ["From now on you are not told what was right."], ["Go on"]);
    if (study.rest && done > 0 && done % study.rest === 0 && before) {
      await page(el, "Time for a break", [`${done} of ${main} trials are done. Rest your eyes as long as you like.`], ["Go on"]);
    }
    before = trial.part;
    const progress = practice ? `practice ${i + 1} of ${study.trials.length - main}` : `${done + 1} of ${main}`;
    await store.answer(await play(el, trial, { feedback: practice && trial.answer != null, progress }), i);
  }
  return true;
}

// ---------------------------------------------------------------- the demonstration (anywidget)

const KINDS = { exemplar: "natural with natural", visualization: "visualization with natural" };
const percent = (share) => `${Math.round(100 * share)}%`;

function score(data, answers) {
  const hits = (kind, given) => data.trials.reduce((sum, trial, i) => sum + (trial.kind === kind ? trial.answer.filter((slot, j) => slot === given(trial, i)[j]).length : 0), 0);
  const size = (kind) => data.trials.reduce((sum, trial) => sum + (trial.kind === kind ? trial.answer.length : 0), 0);
  const guess = (kind) => data.trials.filter((trial) => trial.kind === kind).length;
  const kinds = Object.keys(KINDS).filter(size);
  const rows = [["You", "you", kinds.map((kind) => hits(kind, (_, i) => answers[i].match))], ["Guessing, on average", "guess", kinds.map(guess)],
    ...data.machines.map((name) => [name, "machine", kinds.map((kind) => hits(kind, (trial) => trial.machines[name]))])];
  const total = rows[0][2].reduce((a, b) => a + b, 0), all = kinds.map(size).reduce((a, b) => a + b, 0);
  const bar = (right, of) => {
    const fill = h("i", { class: "fill" });
    fill.style.width = `${(100 * right) / of}%`;
    return h("td", {}, h("span", { class: "bar" }, fill), h("span", { class: "hits" }, `${right} of ${of}`));
  };
  const table = h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "matched rightly"), kinds.map((kind) => h("th", { scope: "col" }, KINDS[kind])))),
    h("tbody", {}, rows.map(([name, type, values]) => h("tr", { class: type }, h("th", { scope: "row" }, name), values.map((right, i) => bar(right, size(kinds[i])))))));
  const odds = data.at_least[total], once = odds > 0.01 ? percent(odds) : "less than 1%";
  return [`You matched ${total} of ${all} rows rightly. Guessing gets at least as many in ${once} of all cases (counted exactly over all permutations).`, h("div", { class: "score" }, table),
    "The machine observers are programs that compare numbers; no person's answers are shown here but yours, and yours stay in this page."];
}

function render({ model, el }) {
  const data = model.get("data");
  const root = h("div", { class: "featvis-match", "data-lm-suppress-shortcuts": "true" });
  root.addEventListener("keydown", (event) => event.stopPropagation()); // else JupyterLab takes the keys
  el.replaceChildren(root);
  const url = (key) => data.pictures[key];
  const trials = data.trials.map((trial) => ({ ...trial, left: trial.left.map((row) => row.map(url)), right: trial.right.map((row) => row.map(url)) }));
  (async () => {
    for (;;) {
      await page(root, "Play the experiment", data.intro, ["Start"]);
      const answers = [];
      const store = { next: 0, answer: async (answer) => {
        answers.push(answer);
        model.set("answers", [...answers]);
        model.save_changes();
      } };
      await run(root, { trials: trials.map(({ answer, ...trial }) => trial) }, store);
      await page(root, "How did you do?", score(data, answers), ["Play again"]);
    }
  })();
}

export default { render };
