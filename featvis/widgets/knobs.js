// The knobs: what makes a visualization, to be turned; a run of the optimization, to be watched. They need a kernel, which
// does the work; a published page (`model.kernel === false`) shows the last picture and says so.

const RATES = { fourier: 0.05, pixels: 0.05, maco: 0.3 }; // each parameterization's own step size
const KNOBS = ["unit", "steps", "rate", "parameterization", "jitter", "scale", "degrees", "seed"];
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

const format = (value) => (Number.isFinite(value) ? value.toPrecision(3).replace("-", "−") : "–");
const seconds = (value) => (value < 60 ? `${value < 10 ? value.toFixed(1) : Math.round(value)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`);

function ticks(low, high, most) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((candidate) => candidate >= rough);
  const result = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) result.push(Number((i * step).toPrecision(12)));
  return result;
}

// The activation after each step that was shown.
function plot(curve, total, width) {
  const height = 150, left = 40, right = width - 18, top = 10, floor = height - 36;
  const points = curve.filter(([, value]) => Number.isFinite(value));
  const values = points.map(([, value]) => value);
  const low = Math.min(0, ...values), high = Math.max(low + 1e-6, ...values);
  const x = (step) => left + ((right - left) * step) / Math.max(1, total);
  const y = (value) => floor - ((floor - top) * (value - low)) / (high - low);
  const parts = [];
  for (const value of points.length ? ticks(low, high, 4) : []) {
    parts.push(s("line", { class: "rule", x1: left, x2: right, y1: y(value), y2: y(value) }));
    parts.push(s("text", { x: left - 5, y: y(value) + 4, "text-anchor": "end" }, String(value).replace("-", "−")));
  }
  parts.push(s("line", { class: "axis", x1: left, x2: right, y1: floor, y2: floor }));
  for (const step of ticks(0, total, 4)) {
    parts.push(s("line", { class: "axis", x1: x(step), x2: x(step), y1: floor, y2: floor + 4 }));
    parts.push(s("text", { x: x(step), y: floor + 16, "text-anchor": "middle" }, String(step)));
  }
  parts.push(s("text", { x: (left + right) / 2, y: height - 3, "text-anchor": "middle" }, "step"));
  parts.push(s("text", { transform: `translate(9 ${(top + floor) / 2}) rotate(-90)`, "text-anchor": "middle" }, "activation"));
  parts.push(s("polyline", { class: "curve", points: points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }));
  const last = points.at(-1);
  if (last) parts.push(s("circle", { class: "curve", cx: x(last[0]), cy: y(last[1]), r: 3.5 }));
  const words = last ? `Activation after ${last[0]} steps: ${format(last[1])}.` : "No activation yet.";
  return s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": words }, parts);
}

function render({ model, el }) {
  const live = model.kernel !== false;
  const root = h("div", { class: "featvis-knobs", "data-lm-suppress-shortcuts": "true" });
  root.addEventListener("keydown", (event) => event.stopPropagation()); // else JupyterLab takes the arrow keys

  // ---- what the kernel tells
  const canvas = h("canvas", { width: 96, height: 96, role: "img" });
  const caption = h("p", { class: "caption" });
  const graph = h("div", { class: "graph" });
  const progress = h("progress", { max: 1, value: 0, "aria-label": "Progress of the run" });
  const clock = h("p", { class: "clock" });
  const message = h("p", { class: "message", role: "status" });
  let latest = 0, arrived = 0;

  async function paintFrame() {
    const bytes = model.get("frame"), turn = ++latest;
    const shown = model.get("shown"), curve = model.get("curve") ?? [];
    canvas.setAttribute("aria-label", shown ? `visualization of ${shown} after ${model.get("step")} steps` : "no visualization yet");
    caption.replaceChildren(...(shown ? [h("b", {}, shown), ` step ${model.get("step")} of ${model.get("total")}`, h("span", {}, format(curve.at(-1)?.[1]))] : ["No run yet."]));
    if (!bytes?.byteLength) {
      canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
      canvas.dataset.step = "0";
      return;
    }
    const picture = await createImageBitmap(new Blob([bytes], { type: "image/webp" }));
    if (turn !== latest) return picture.close(); // a newer frame overtook this one
    canvas.width = picture.width;
    canvas.height = picture.height;
    canvas.getContext("2d").drawImage(picture, 0, 0);
    canvas.dataset.step = String(model.get("step"));
    picture.close();
  }
  function paintCurve() {
    const width = Math.round(graph.clientWidth);
    if (width > 80) graph.replaceChildren(plot(model.get("curve") ?? [], model.get("total") || model.get("steps"), width));
  }
  // Between two frames the clock goes on by itself.
  function paintClock() {
    const step = model.get("step"), total = model.get("total"), running = model.get("running");
    const told = model.get("elapsed"), since = running && step ? (performance.now() - arrived) / 1000 : 0;
    const rest = step ? Math.max(0, (told / step) * (total - step) - since) : null;
    progress.max = Math.max(1, total);
    progress.value = step;
    clock.textContent = running ? (rest === null ? "starting …" : `${seconds(told + since)} · about ${seconds(rest)} left`) : step ? seconds(told) : "";
  }
  const paintMessage = () => { message.textContent = model.get("message"); };

  const watched = [];
  const follow = (names, react) => {
    for (const name of names) {
      model.on(`change:${name}`, react);
      watched.push([`change:${name}`, react]);
    }
    react();
  };
  const observer = new ResizeObserver(paintCurve);

  if (!live) {
    const sentence = h("p", { class: "message" }, "These knobs need a running kernel: open this chapter in JupyterLab to turn them.");
    root.classList.add("asleep");
    root.append(sentence);
    if (model.get("frame")?.byteLength) {
      root.append(h("div", { class: "view" }, h("figure", {}, canvas, caption), graph));
      paintFrame();
      observer.observe(graph);
    }
    el.replaceChildren(root);
    return () => observer.disconnect();
  }

  // ---- what the reader turns
  const save = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const field = (label, control, output) => h("label", { class: "field" }, h("span", {}, label), control, output);

  function text(name, label) {
    const list = h("datalist", { id: `featvis-units-${Math.random().toString(36).slice(2)}` }, model.get("units").map((unit) => h("option", { value: unit })));
    const input = h("input", {
      type: "text", list: list.id, spellcheck: "false", autocomplete: "off", oninput: () => save(name, input.value.trim()),
      onkeydown: (event) => event.key === "Enter" && start(),
    });
    follow([name], () => { if (input.value.trim() !== model.get(name)) input.value = model.get(name); });
    return h("div", {}, field(label, input), list);
  }
  function number(name, label, min, max) {
    const input = h("input", {
      type: "number", min, max, step: 1,
      oninput: () => { if (input.value !== "" && input.checkValidity()) save(name, Math.round(input.valueAsNumber)); },
    });
    follow([name], () => { if (input.valueAsNumber !== model.get(name)) input.value = model.get(name); });
    return field(label, input);
  }
  function slider(name, label, stops, unit) {
    const input = h("input", { type: "range", min: 0, max: stops.length - 1, step: 1, oninput: () => save(name, stops[input.valueAsNumber]) });
    const output = h("output", {});
    const nearest = (value) => stops.reduce((best, stop, i) => (Math.abs(stop - value) < Math.abs(stops[best] - value) ? i : best), 0);
    follow([name], () => {
      const value = model.get(name);
      input.value = nearest(value);
      output.textContent = unit(value);
      input.setAttribute("aria-valuetext", unit(value));
    });
    return field(label, input, output);
  }
  // A transform is off at 0; its checkbox brings the last value back.
  function transform(name, label, stops, unit) {
    let last = model.get(name) || stops[Math.floor(stops.length / 2)];
    const tick = h("input", { type: "checkbox", "aria-label": `${label} on`, onchange: () => save(name, tick.checked ? last : 0) });
    const row = slider(name, label, stops, (value) => (value ? unit(value) : "off"));
    follow([name], () => {
      last = model.get(name) || last;
      tick.checked = model.get(name) > 0;
    });
    return h("div", { class: "transform" }, tick, row);
  }
  const range = (from, to, by) => Array.from({ length: Math.round((to - from) / by) + 1 }, (_, i) => Number((from + i * by).toPrecision(6)));

  const choice = h("select", {
    onchange: () => {
      if (model.get("rate") === RATES[model.get("parameterization")]) model.set("rate", RATES[choice.value]);
      save("parameterization", choice.value);
    },
  }, Object.keys(RATES).map((name) => h("option", { value: name }, name)));
  const transforms = h("fieldset", {}, h("legend", {}, "Transforms"),
    transform("jitter", "jitter", range(0, 32, 1), (v) => `${v} px of 224`),
    transform("scale", "scale", range(0, 0.4, 0.01), (v) => `± ${Math.round(100 * v)}%`),
    transform("degrees", "rotate", range(0, 45, 1), (v) => `± ${v}°`));
  const crops = h("p", { class: "hint" }, "maco looks at random crops instead.");
  transforms.append(crops);
  follow(["parameterization"], () => {
    const own = model.get("parameterization") === "maco";
    choice.value = model.get("parameterization");
    crops.hidden = !own;
    for (const input of transforms.querySelectorAll("input")) input.disabled = own;
  });

  // The knobs travel with the order to run: a change of theirs may still be waiting for a busy kernel, and messages overtake it.
  const start = () => {
    if (!model.get("running")) model.send({ do: "run", knobs: Object.fromEntries(KNOBS.map((name) => [name, model.get(name)])) });
  };
  const run = h("button", { type: "button", class: "run", onclick: start }, "Run");
  const stop = h("button", { type: "button", class: "stop", onclick: () => { model.send({ do: "stop" }); stop.disabled = true; } }, "Stop");

  root.append(
    h("div", { class: "controls" }, text("unit", "unit"), field("parameterization", choice),
      number("steps", "steps", 1, 4096), slider("rate", "learning rate", [0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1], (v) => String(v)),
      number("seed", "seed", 0, 999999), transforms, h("div", { class: "buttons" }, run, stop)),
    h("div", { class: "view" }, h("figure", {}, canvas, caption), h("div", {}, progress, clock, graph, message)));
  el.replaceChildren(root);

  follow(["frame", "step", "shown", "total"], paintFrame);
  follow(["curve", "total"], paintCurve);
  follow(["step", "elapsed", "running"], () => { arrived = performance.now(); paintClock(); });
  follow(["message"], paintMessage);
  follow(["running"], () => {
    run.disabled = model.get("running");
    stop.disabled = !model.get("running");
  });
  const ticking = setInterval(() => model.get("running") && paintClock(), 500);
  observer.observe(graph);
  return () => {
    clearInterval(ticking);
    observer.disconnect();
    for (const [name, react] of watched) model.off(name, react);
  };
}

export default { render };
