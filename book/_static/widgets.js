// The offline widget host: brings the anywidgets of a page to life without a kernel and without a request elsewhere.
//
// A built page carries the widgets' state (application/vnd.jupyter.widget-state+json) and, where a widget is shown,
// its id (application/vnd.jupyter.widget-view+json). An anywidget's state holds its own module (_esm) and style (_css),
// so all that is needed is a model to give them. `model.kernel === false` tells a widget that nobody answers `send`.
(() => {
  "use strict";
  const STATE = "application/vnd.jupyter.widget-state+json";
  const VIEW = "application/vnd.jupyter.widget-view+json";

  const scripts = (type) => [...document.querySelectorAll(`script[type="${type}"]`)];

  function bytes(text, encoding) {
    const raw = encoding === "hex"
      ? Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16))
      : Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    return new DataView(raw.buffer);
  }

  // Buffers lie beside the JSON with the path of the place they were taken from.
  function revive(record) {
    const state = record.state ?? {};
    for (const { data, path, encoding } of record.buffers ?? []) {
      const parent = path.slice(0, -1).reduce((value, key) => value[key], state);
      parent[path.at(-1)] = bytes(data, encoding);
    }
    return state;
  }

  class Model {
    kernel = false;
    #state;
    #listeners = new Map();

    constructor(state) {
      this.#state = state;
    }
    get(key) {
      return this.#state[key];
    }
    set(key, value) {
      const changes = typeof key === "object" ? Object.entries(key) : [[key, value]];
      const changed = changes.filter(([name, next]) => this.#state[name] !== next);
      for (const [name, next] of changed) this.#state[name] = next;
      for (const [name, next] of changed) this.#emit(`change:${name}`, this, next);
      if (changed.length) this.#emit("change", this);
    }
    on(event, callback) {
      for (const name of event.split(" ")) {
        if (!this.#listeners.has(name)) this.#listeners.set(name, new Set());
        this.#listeners.get(name).add(callback);
      }
    }
    off(event, callback) {
      if (event == null) return this.#listeners.clear();
      for (const name of event.split(" ")) {
        if (callback == null) this.#listeners.delete(name);
        else this.#listeners.get(name)?.delete(callback);
      }
    }
    save_changes() {}
    send() {}
    #emit(name, ...details) {
      for (const callback of [...(this.#listeners.get(name) ?? [])]) callback(...details);
    }
  }

  const modules = new Map(); // source -> module: each is imported once, however many widgets share it
  function load(source) {
    if (!modules.has(source)) {
      const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
      const loading = import(url)
        .then(async ({ default: given, ...named }) => (typeof given === "function" ? given() : given ?? named))
        .finally(() => URL.revokeObjectURL(url));
      modules.set(source, loading);
    }
    return modules.get(source);
  }

  const styles = new Set();
  function style(css) {
    if (!css || styles.has(css)) return;
    styles.add(css);
    const element = document.createElement("style");
    element.textContent = css;
    document.head.append(element);
  }

  function say(el, sentence) {
    const note = document.createElement("p");
    note.className = "widget-note";
    note.style.cssText = "margin:0;padding:.6em .8em;border:1px solid currentColor;border-radius:6px;opacity:.8";
    note.textContent = sentence;
    el.replaceChildren(note);
  }

  const started = new Map(); // id -> {model, widget}: several views share one model
  async function start(record) {
    const state = revive(record);
    const model = new Model(state);
    const widget = await load(state._esm);
    style(state._css);
    await widget.initialize?.({ model });
    return { model, widget };
  }

  async function show(id, record, el) {
    if (!record) {
      return say(el, "This widget was not saved with the page: run the notebook to see it.");
    }
    const source = record.state?._esm;
    if (record.model_module !== "anywidget" || typeof source !== "string" || /^https?:/.test(source)) {
      return say(el, "This control needs a running kernel: open the notebook in JupyterLab to use it.");
    }
    if (!started.has(id)) started.set(id, start(record));
    const { model, widget } = await started.get(id);
    await widget.render?.({ model, el });
  }

  function wake() {
    const records = {};
    for (const script of scripts(STATE)) {
      try {
        Object.assign(records, JSON.parse(script.textContent).state);
      } catch (error) {
        console.error("The state of this page's widgets cannot be read.", error);
      }
    }
    for (const script of scripts(VIEW)) {
      const { model_id: id } = JSON.parse(script.textContent);
      const el = document.createElement("div");
      el.className = "widget-view";
      script.after(el);
      show(id, records[id], el).catch((error) => {
        console.error(error);
        say(el, `This widget could not be shown: ${error.message}`);
      });
    }
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", wake);
  else wake();
})();
