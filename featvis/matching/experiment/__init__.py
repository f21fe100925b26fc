"""The experiment in a browser: one front-end module, a server that keeps every answer, an export for jsPsych."""
