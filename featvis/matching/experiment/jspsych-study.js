// The study as a jsPsych timeline. Data goes to JATOS where it runs there, and otherwise to a file that is downloaded.

if (!globalThis.initJsPsych) {
  document.getElementById("study").textContent =
    "This study cannot start, because the package jspsych is missing: copy its dist/index.browser.min.js to jspsych/index.browser.min.js in this folder.";
  throw new Error("jspsych/index.browser.min.js is missing");
}
const { MatchingPage, MatchingPlugin } = await import("./jspsych-matching.js");
const study = await (await fetch("study.json")).json();
const asked = new URLSearchParams(location.search).get("list");
const list = Number(asked ?? Math.floor(Math.random() * study.lists.length)) % study.lists.length;
const trials = study.lists[list];
const main = trials.filter((trial) => trial.part !== "practice").length;

const jsPsych = globalThis.initJsPsych({
  display_element: "study",
  on_data_update: () => localStorage.setItem("featvis-matching", jsPsych.data.get().json()), // a copy, should the page break down
  on_finish: () => {
    if (globalThis.jatos) return jatos.endStudy(jsPsych.data.get().json());
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([jsPsych.data.get().filter({ trial_type: "matching" }).csv()], { type: "text/csv" }));
    link.download = "answers.csv";
    link.textContent = "Save the answers";
    document.getElementById("study").replaceChildren(link);
  },
});
jsPsych.data.addProperties({ observer: `sub-${jsPsych.randomization.randomID(8)}`, list });

const text = (title, body, buttons) => ({ type: MatchingPage, title, body, buttons });
const consent = {
  ...text("Do you want to take part?", study.texts.consent, ["I agree", "No, thank you"]),
  on_finish: ({ response }) => response === 1 && jsPsych.abortExperiment("Nothing was recorded. You can close this page."),
};
const steps = trials.flatMap((trial, i) => {
  const practice = trial.part === "practice", done = i - (trials.length - main);
  const progress = practice ? `practice ${i + 1} of ${trials.length - main}` : `${done + 1} of ${main}`;
  const rest = done > 0 && done % study.texts.rest === 0 ? [text("Time for a break", [`${done} of ${main} trials are done.`])] : [];
  return [...rest, { type: MatchingPlugin, trial, feedback: practice, progress }];
});
jsPsych.run([consent, text("What to do", study.texts.instruction, ["Start"]), ...steps, text("Thank you", study.texts.debriefing, ["Finish"])]);
