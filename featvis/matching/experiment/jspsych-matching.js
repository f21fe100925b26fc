// A plugin for jsPsych 8: one matching trial. `trial` is a trial as matching.js describes it.

import { page, play } from "./matching.js";

const { ParameterType } = globalThis.jsPsychModule;

function root(display) {
  const el = document.createElement("div");
  el.className = "featvis-match";
  display.replaceChildren(el);
  return el;
}

export class MatchingPlugin {
  static info = {
    name: "matching",
    version: "1.0.0",
    parameters: {
      trial: { type: ParameterType.OBJECT, default: undefined },
      feedback: { type: ParameterType.BOOL, default: false },
      progress: { type: ParameterType.STRING, default: "" },
    },
    data: {
      trial: { type: ParameterType.STRING },
      match: { type: ParameterType.INT, array: true },
      confidence: { type: ParameterType.INT },
      rt: { type: ParameterType.FLOAT },
      first: { type: ParameterType.FLOAT },
      moves: { type: ParameterType.INT },
      away: { type: ParameterType.FLOAT },
      width: { type: ParameterType.INT },
    },
  };
  constructor(jsPsych) {
    this.jsPsych = jsPsych;
  }
  trial(display, { trial, feedback, progress }) {
    play(root(display), trial, { feedback, progress }).then((answer) => {
      display.replaceChildren();
      this.jsPsych.finishTrial(answer);
    });
  }
}

// A page of text, with buttons whose number is the response.
export class MatchingPage {
  static info = {
    name: "matching-page",
    version: "1.0.0",
    parameters: {
      title: { type: ParameterType.STRING, default: "" },
      body: { type: ParameterType.STRING, array: true, default: [] },
      buttons: { type: ParameterType.STRING, array: true, default: ["Go on"] },
    },
    data: { response: { type: ParameterType.INT } },
  };
  constructor(jsPsych) {
    this.jsPsych = jsPsych;
  }
  trial(display, { title, body, buttons }) {
    page(root(display), title, body, buttons).then((response) => {
      display.replaceChildren();
      this.jsPsych.finishTrial({ response });
    });
  }
}
