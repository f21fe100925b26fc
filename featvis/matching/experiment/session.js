// A session with the experiment's server: every answer is kept here until the server has said that it is stored.
//
// The address of the page holds the participant's token. An answer gets an id before it is sent, so that it can be
// sent again after any failure, or after a reload, and is still stored once.

import { h, page, run } from "./matching.js";

const token = location.pathname.split("/").pop();
const api = `/api/${token}`, kept = `featvis-matching ${token}`;
const el = document.getElementById("study"), status = document.getElementById("status");
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const id = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

// Where the browser refuses to keep anything, an answer lives in this page only, until it is stored.
const outbox = {
  get() {
    try {
      return JSON.parse(localStorage.getItem(kept) ?? "null");
    } catch {
      return null;
    }
  },
  set(value) {
    try {
      value ? localStorage.setItem(kept, JSON.stringify(value)) : localStorage.removeItem(kept);
    } catch {}
  },
};

// Sends until the server answers; a refusal (4xx) is final, everything else is tried again.
async function send(path, body) {
  for (let pause = 500; ; pause = Math.min(2 * pause, 8000)) {
    try {
      const response = await fetch(api + path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
      const answer = await response.json();
      if (response.status < 500) {
        status.textContent = "";
        return { ok: response.ok, ...answer };
      }
      status.textContent = `${answer.error ?? "The server cannot store answers."} Your answer is kept; trying again …`;
    } catch {
      status.textContent = "No connection. Your answer is kept; trying again …";
    }
    await wait(pause);
  }
}
async function state() {
  for (let pause = 500; ; pause = Math.min(2 * pause, 8000)) {
    try {
      const response = await fetch(`${api}/state`);
      if (response.ok || response.status === 404) {
        status.textContent = "";
        return response.ok ? await response.json() : null;
      }
    } catch {}
    status.textContent = "No connection; trying again …";
    await wait(pause);
  }
}
async function deliver(answer) {
  outbox.set(answer);
  const told = await send("/answers", answer);
  if (told.ok || told.next != null) outbox.set(null); // what was refused for another reason stays until the next answer
  if (!told.ok && told.next == null) throw new Error(told.error);
  return told;
}

async function start() {
  const left = outbox.get();
  if (left) await deliver(left).catch(() => {}); // from before a reload or a crash
  const study = await state();
  if (!study) return page(el, "This link is not valid", ["Please ask whoever gave it to you for a new one."], []);
  document.title = study.title;
  document.querySelector("h1").textContent = study.title;
  if (study.next < study.trials.length) {
    const store = {
      next: study.next,
      consented: study.consented,
      event: (kind, data) => send("/events", { kind, data }),
      answer: async (answer, position) => {
        const told = await deliver({ id: id(), position, ...answer });
        if (!told.ok) location.reload(); // another window went on with this session: take up where it is
      },
    };
    if (!(await run(el, study, store))) return;
  }
  let stored = true;
  if (!study.commented) {
    const text = h("textarea", { id: "comment", maxlength: 2000 });
    const label = h("label", { for: "comment" }, "Is there anything that you would like to tell us? (optional)");
    const skipped = await page(el, "Nearly done", [label, text], ["Send", "Skip"]);
    const told = await send("/events", { kind: "comment", data: { text: skipped ? "" : text.value } });
    stored = told.ok;
  }
  page(el, "Thank you", [...study.debriefing, stored ? study.saved : "Your answers are saved, but your comment was not stored."], []);
}

start().catch((error) => page(el, "Something went wrong", [String(error.message), "Reload the page to go on where you were."], []));
