"use strict";
// Exact figures at once, for the pointer and for the keyboard; without this script the browser's own titles do it.
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);

for (const title of document.querySelectorAll("svg title")) {
  title.parentElement.setAttribute("aria-label", title.textContent);
  title.remove();
}

function show(event) {
  const mark = event.target.closest("svg [aria-label]:not([role=group]), svg[aria-label]:not([role=group])");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.getAttribute("aria-label");
  const box = mark.getBoundingClientRect();
  const x = event.clientX ?? box.left + Math.min(box.width, 200) / 2;
  const left = Math.min(Math.max(8, x - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
  const above = box.top - tip.offsetHeight - 8;
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${(above > 0 ? above : box.bottom + 8) + scrollY}px`;
}
document.addEventListener("pointerover", show);
document.addEventListener("focusin", show);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

// A heading sorts its table: by the number behind each cell where there is one, else by its text; dashes go last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].map((row) => {
      const cell = row.cells[head.cellIndex];
      const text = cell.textContent.trim();
      return { row, empty: text === "" || text === "–", key: "value" in cell.dataset ? Number(cell.dataset.value) : text };
    });
    const sign = down ? -1 : 1;
    rows.sort((a, b) => {
      if (a.empty !== b.empty) return a.empty ? 1 : -1;
      if (typeof a.key === "number" && typeof b.key === "number") return sign * (a.key - b.key);
      return sign * String(a.key).localeCompare(String(b.key), undefined, { numeric: true });
    });
    body.append(...rows.map(({ row }) => row));
  });
}
