// Runs before the page is drawn, so that a chosen theme does not flash.
"use strict";
{
  let chosen = null;
  try { chosen = localStorage.getItem("theme"); } catch { /* Storage may be off. */ }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
