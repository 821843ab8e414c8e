// Runs before the page is painted, so that it does not flash in the wrong colours.
const chosen = localStorage.getItem("overnight-theme");
if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
