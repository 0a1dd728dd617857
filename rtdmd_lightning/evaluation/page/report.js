"use strict";
// Filters and sorts the rows of each gallery. A row's scores are in data-scores: [entry][reward].
for (const gallery of document.querySelectorAll(".gallery")) {
  const form = gallery.querySelector(".controls");
  const list = gallery.querySelector(".rows");
  const status = gallery.querySelector("[role=status]");
  const baseline = Number(gallery.dataset.baseline);
  const rows = [...list.children]; // in prompt order, which sorting goes back to
  const scores = new Map(rows.map((row) => [row, JSON.parse(row.dataset.scores)]));
  const chosen = (name) => (form.elements[name] ? form.elements[name].value : "");

  const update = () => {
    const tag = chosen("tag");
    for (const row of rows) row.hidden = tag !== "" && row.dataset.tag !== tag;

    const reward = chosen("reward");
    const difference = (row) => scores.get(row)[chosen("entry")][reward] - scores.get(row)[baseline][reward];
    const sorted = reward === "" ? rows : rows.toSorted((a, b) => chosen("direction") * (difference(a) - difference(b)));
    list.replaceChildren(...sorted);

    for (const row of rows) {
      for (const item of row.querySelectorAll("dl")) {
        [...item.children].forEach((score, index) => score.classList.toggle("sorted", String(index) === reward));
      }
      const gap = row.querySelector(".gap");
      if (gap) gap.remove();
      if (reward !== "") {
        const label = document.createElement("span");
        label.className = "gap";
        label.textContent = (difference(row) >= 0 ? "+" : "−") + Math.abs(difference(row)).toFixed(3);
        row.querySelector("h4").append(label);
      }
    }
    for (const name of ["entry", "direction"]) {
      if (form.elements[name]) form.elements[name].disabled = reward === "";
    }
    status.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} prompts`;
  };

  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
}
