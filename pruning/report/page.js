"use strict";
// Opens the layer that the address names, also when its link or its row is clicked.
function openNamed() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = target; part; part = part.parentElement) {
    if (part.tagName === "DETAILS") part.open = true;
  }
  if (target) target.scrollIntoView();
}
addEventListener("hashchange", openNamed);
document.addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-layer]");
  if (!row) return;
  event.preventDefault();
  if (location.hash === "#" + row.dataset.layer) openNamed();
  else location.hash = row.dataset.layer;
});
openNamed();
