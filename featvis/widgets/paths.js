// Two images on their way through the network: how alike they are in every layer, and the maps behind it.
//
// Everything is computed beforehand (see paths.py), so a published page without a kernel does all that a notebook does.

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
const format = (value) => (value == null ? "undefined" : value.toFixed(2).replace("-", "−"));

// How far from two images of different classes (0) to two of this class (1).
function scaled(one, value, layer) {
  const apart = one.same[layer] - one.different[layer];
  return value == null || !(apart > 0.02) ? null : (value - one.different[layer]) / apart;
}

function sentence(data, one, first, second, layer) {
  const value = one.similarity[first][second][layer], part = scaled(one, value, layer);
  const known = `natural images of this class have ${format(one.same[layer])}, of different classes ${format(one.different[layer])}`;
  if (first === second) return `${data.layers[layer]}: this is one image twice. Choose another one.`;
  return `${data.layers[layer]}: ρ = ${format(value)}; ${known}${part == null ? "" : `; on the scale from 0 (different classes) to 1 (this class) the pair is at ${format(part)}`}.`;
}

// ---------------------------------------------------------------- the curve along the layers

function chart(data, one, first, second, width, choose) {
  const W = Math.max(280, width), H = 232, left = 38, right = W - 12, top = 14, floor = H - 74;
  const curve = one.similarity[first][second], n = data.layers.length;
  const all = [...one.same, ...one.different, ...curve].filter((value) => value != null);
  const low = Math.min(0, ...all) - 0.04, high = Math.max(...all) + 0.05;
  const x = (i) => left + ((right - left) * (i + 0.5)) / n, y = (value) => floor - ((floor - top) * (value - low)) / (high - low);
  const line = (name, values) => s("polyline", { class: name, points: values.flatMap((v, i) => (v == null ? [] : [`${x(i).toFixed(1)},${y(v).toFixed(1)}`])).join(" ") });
  const band = s("polygon", { class: "band", points: [...one.same.map((v, i) => [x(i), y(v)]), ...one.different.map((v, i) => [x(i), y(v)]).reverse()].map((p) => p.map((c) => c.toFixed(1)).join(",")).join(" ") });
  const parts = [];
  for (let value = Math.ceil(low * 5) / 5; value <= high; value = Math.round(5 * value + 1) / 5) {
    parts.push(s("line", { class: "rule", x1: left, x2: right, y1: y(value), y2: y(value) }), s("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, format(value).replace(/0$/, "")));
  }
  data.layers.forEach((name, i) => parts.push(s("text", { class: "tick", transform: `translate(${x(i) + 4} ${floor + 12}) rotate(-45)`, "text-anchor": "end" }, name)));
  const cursor = s("line", { class: "cursor", y1: top, y2: floor });
  const dots = curve.map((value, i) => s("circle", { cx: x(i), cy: value == null ? floor : y(value), r: 4 }));
  const fields = data.layers.map((_, i) => s("rect", { class: "field", x: x(i) - (right - left) / n / 2, y: top, width: (right - left) / n, height: H - top, onclick: () => choose(i) }));
  const title = `Spearman's ρ of the two images in ${n} layers, from ${format(curve[0])} in ${data.layers[0]} to ${format(curve[n - 1])} in ${data.layers[n - 1]}`;
  const svg = s("svg", { viewBox: `0 0 ${W} ${H}`, role: "img" }, s("title", {}, title), ...parts, band, line("same", one.same), line("different", one.different), line("pair", curve), cursor, ...dots, ...fields);
  function show(layer) {
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(layer));
    dots.forEach((dot, i) => dot.setAttribute("r", i === layer ? 6.5 : 3.5));
  }
  return { svg, show, ends: [x(0), W - x(n - 1)] };
}

// ---------------------------------------------------------------- the maps

// A map as a canvas of one pixel a position; CSS enlarges it. The scale from dark to light is the channel's, over all images of the class.
function picture(bytes, from, height, width, label) {
  const canvas = h("canvas", { width, height, role: "img", "aria-label": label });
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const t = bytes[from + i] / 255;
    image.data.set([255 * Math.min(1, 0.07 + 1.25 * t), 255 * (0.07 + 0.83 * t ** 1.6), 255 * (0.15 + 0.75 * t ** 3 + 0.25 * t * (1 - t)), 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function maps(one, layer, first, second) {
  const { height, width, channels, alike, values } = one.maps[layer];
  const bytes = Uint8Array.from(atob(values), (c) => c.charCodeAt(0)), size = height * width;
  const tile = (image, k, side) => picture(bytes, (image * channels.length + k) * size, height, width, `${side}, ${height > 1 ? `channel ${channels[k]}` : "logits"}`);
  return channels.map((channel, k) => {
    const value = alike[first][second][k], part = value == null ? 0 : Math.max(0, Math.min(1, value));
    return h("figure", { class: height > 1 ? "map" : "map row" }, tile(first, k, "A"), tile(second, k, "B"),
      h("div", { class: "meter", "aria-hidden": "true" }, h("i", { style: `width: ${100 * part}%` })),
      h("figcaption", {}, `${height > 1 ? `channel ${channel}` : "all logits"}: ρ ${format(value)}`));
  });
}

// ---------------------------------------------------------------- the widget

function render({ model, el }) {
  const data = model.get("data");
  const root = h("div", { class: "featvis-paths", "data-lm-suppress-shortcuts": "true" });
  root.addEventListener("keydown", (event) => event.stopPropagation()); // else JupyterLab takes the arrow keys
  const save = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const one = () => data.classes[model.get("group")];
  const classes = data.classes.map(({ name }, i) => h("button", { type: "button", onclick: () => save("group", i) }, name));

  function slot(name, letter) {
    const large = h("img", { alt: "", draggable: "false" }), label = h("span");
    const small = data.classes[0].images.map((_, i) => h("button", { type: "button", class: "thumb", onclick: () => save(name, i) }, h("img", { alt: "", draggable: "false" })));
    const block = h("div", { class: "slot" }, h("div", { class: "large" }, h("b", {}, letter), large), label, h("div", { class: "thumbs", role: "group", "aria-label": `Image ${letter}` }, small));
    function show() {
      const images = one().images, chosen = images[model.get(name)];
      large.src = chosen.src;
      large.alt = `image ${letter}: ${chosen.label}`;
      label.textContent = chosen.label;
      block.className = `slot ${chosen.kind}`;
      small.forEach((button, i) => {
        button.firstChild.src = images[i].src;
        button.setAttribute("aria-pressed", String(i === model.get(name)));
        button.setAttribute("aria-label", images[i].label);
        button.title = images[i].label;
      });
    }
    return { block, show };
  }
  const slots = [slot("first", "A"), slot("second", "B")];
  const graph = h("div", { class: "graph" });
  const slider = h("input", { type: "range", min: 0, max: data.layers.length - 1, step: 1, "aria-label": "Layer", oninput: () => save("layer", slider.valueAsNumber) });
  const words = h("p", { class: "words", "aria-live": "polite" });
  const key = (name, text) => h("span", {}, h("i", { class: `key ${name}` }), text);
  const legend = h("p", { class: "legend" }, key("pair", "A with B"), key("same", "natural images of this class"), key("different", "of different classes"));
  const tiles = h("div", { class: "maps" }), about = h("p", { class: "about" });
  root.append(h("div", { class: "classes", role: "group", "aria-label": "Class" }, classes), h("div", { class: "body" },
    h("div", { class: "slots" }, slots.map(({ block }) => block)),
    h("div", { class: "show" }, legend, graph, h("div", { class: "slide" }, slider), words, about, tiles)));
  el.replaceChildren(root);

  let mark = () => {}, drawn = 0;
  function paint() {
    const [first, second, layer] = ["first", "second", "layer"].map((name) => model.get(name));
    slider.value = layer;
    slider.setAttribute("aria-valuetext", data.layers[layer]);
    words.textContent = sentence(data, one(), first, second, layer);
    about.textContent = one().maps[layer].height > 1 ? "The channels that these six images excite most, each in A (left) and B (right):" : "All logits in A (above) and B (below):";
    tiles.replaceChildren(...maps(one(), layer, first, second));
    mark(layer);
  }
  function draw() {
    const width = Math.round(graph.clientWidth);
    if (width < 80) return;
    drawn = width;
    const drawing = chart(data, one(), model.get("first"), model.get("second"), width, (i) => save("layer", i));
    graph.replaceChildren(drawing.svg);
    // The thumb's middle stands under its layer: half a step, less half a thumb, is left at either end.
    const [start, end] = drawing.ends.map((gap) => `${Math.max(0, gap - 8)}px`);
    slider.parentNode.style.padding = `0 ${end} 0 ${start}`;
    mark = drawing.show;
    paint();
  }
  function choose() {
    classes.forEach((button, i) => button.setAttribute("aria-pressed", String(i === model.get("group"))));
    slots.forEach(({ show }) => show());
    if (drawn) draw();
    else paint();
  }

  const observer = new ResizeObserver(() => Math.round(graph.clientWidth) !== drawn && draw());
  observer.observe(graph);
  const choices = ["change:group", "change:first", "change:second"];
  for (const change of choices) model.on(change, choose);
  model.on("change:layer", paint);
  choose();
  return () => {
    observer.disconnect();
    for (const change of choices) model.off(change, choose);
    model.off("change:layer", paint);
  };
}

export default { render };
