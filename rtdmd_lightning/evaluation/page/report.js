"use strict";
// Tables that sort, galleries that search and sort, an enlarged image, keys. Nothing here makes HTML of text.

// A click on a column's name: the highest first, then the lowest first, then as it was.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.querySelectorAll("th[scope=col]")];
  heads.forEach((head, column) => {
    const number = (row) => {
      const found = parseFloat(row.cells[column + 1].textContent);
      return Number.isNaN(found) ? -Infinity : found;
    };
    head.querySelector("button").addEventListener("click", () => {
      const order = { none: "descending", descending: "ascending", ascending: "none" }[head.ariaSort];
      for (const other of heads) other.ariaSort = other === head ? order : "none";
      const sign = { none: 0, descending: -1, ascending: 1 }[order];
      body.replaceChildren(...(sign ? rows.toSorted((a, b) => sign * (number(a) - number(b))) : rows));
    });
  });
}

// A gallery's rows hold their scores in data-scores: [entry][reward].
const galleries = [...document.querySelectorAll(".gallery")];
for (const gallery of galleries) {
  const form = gallery.querySelector(".controls");
  const { search, tag, sort, entry, direction } = form.elements;
  const list = gallery.querySelector(".rows");
  const baseline = Number(gallery.dataset.baseline);
  const rows = [...list.children]; // in prompt order, which sorting goes back to
  const scores = new Map(rows.map((row) => [row, JSON.parse(row.dataset.scores)]));
  const texts = new Map(rows.map((row) => [row, row.querySelector("h4").textContent.toLowerCase()]));

  const values = {
    score: (of, reward) => of[entry.value][reward],
    difference: (of, reward) => of[entry.value][reward] - of[baseline][reward],
    disagreement: (of, reward) => Math.max(...of.map((one) => one[reward])) - Math.min(...of.map((one) => one[reward])),
  };
  const digits = JSON.parse(gallery.dataset.digits);
  const written = (kind, reward, value) =>
    (value < 0 ? "−" : kind === "difference" ? "+" : "") + Math.abs(value).toFixed(digits[reward]);

  const update = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const hasTag = !tag || tag.value === "" || row.dataset.tag === tag.value;
      row.hidden = !(hasTag && words.every((word) => texts.get(row).includes(word)));
    }

    const [kind, reward] = sort.value.split(":");
    const isDifference = kind === "difference";
    for (const option of entry.options) option.hidden = option.disabled = isDifference && Number(option.value) === baseline;
    if (entry.selectedOptions.length === 0 || entry.selectedOptions[0].disabled) {
      entry.value = [...entry.options].find((option) => !option.disabled).value;
    }
    entry.disabled = kind !== "score" && !isDifference;
    direction.disabled = kind === "";
    form.querySelector(".minus").hidden = !isDifference;

    const value = (row) => values[kind](scores.get(row), reward);
    list.replaceChildren(...(kind ? rows.toSorted((a, b) => direction.value * (value(a) - value(b))) : rows));
    for (const row of rows) {
      for (const item of row.querySelectorAll("dl")) {
        [...item.children].forEach((score, index) => score.classList.toggle("sorted", String(index) === reward));
      }
      const told = row.querySelector(".value");
      told.textContent = kind ? written(kind, reward, value(row)) : "";
      told.hidden = !kind;
    }
    const count = rows.filter((row) => !row.hidden).length;
    form.querySelector("[role=status]").textContent = `${count} of ${rows.length} prompts`;
  };

  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
}

// Where an image stands: the images of its row, and the rows that are shown.
const imagesOf = (row) => [...row.querySelectorAll(".enlarge")];
const neighbour = (button, key) => {
  const row = button.closest(".row");
  const images = imagesOf(row);
  const place = images.indexOf(button);
  if (key === "ArrowLeft" || key === "ArrowRight") {
    return images[(place + (key === "ArrowRight" ? 1 : images.length - 1)) % images.length];
  }
  const rows = [...row.parentElement.children].filter((other) => !other.hidden);
  const next = rows[rows.indexOf(row) + (key === "ArrowDown" ? 1 : -1)];
  return next ? imagesOf(next)[place] : button;
};

const enlarged = document.querySelector("#enlarged");
let opened = null; // the image that is enlarged
const enlarge = (button) => {
  opened = button;
  const image = button.querySelector("img");
  const shown = enlarged.querySelector("img");
  shown.src = image.src;
  shown.alt = image.alt;
  shown.className = image.className;
  enlarged.querySelector(".of").replaceChildren(button.parentElement.querySelector("figcaption").cloneNode(true));
  enlarged.querySelector(".of").className = `of ${button.parentElement.className}`;
  enlarged.querySelector("h4").replaceChildren(...button.closest(".row").querySelector("h4").cloneNode(true).childNodes);
  enlarged.querySelector("a").href = button.dataset.file;
  if (!enlarged.open) enlarged.showModal();
};
for (const button of document.querySelectorAll(".enlarge")) button.addEventListener("click", () => enlarge(button));
for (const button of enlarged.querySelectorAll("button[data-key]")) {
  button.addEventListener("click", () => enlarge(neighbour(opened, button.dataset.key)));
}
const shut = () => {
  enlarged.close();
  opened.focus(); // not the image that was enlarged first, as the browser would
};
enlarged.querySelector(".close").addEventListener("click", shut);
enlarged.addEventListener("click", (event) => event.target === enlarged && shut()); // beside it

document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const isSearch = target.name === "search";
  if (enlarged.open) {
    if (key.startsWith("Arrow")) enlarge(neighbour(opened, key));
    else if (key === "Escape") shut();
    else return;
  } else if (key === "/" && !isSearch) {
    const current = target.closest(".gallery") ?? galleries.find((one) => one.getBoundingClientRect().bottom > 0);
    current.querySelector("[name=search]").focus();
  } else if (isSearch && key === "Escape") {
    target.value = "";
    target.dispatchEvent(new Event("input", { bubbles: true }));
    target.blur();
  } else if (isSearch && key === "Enter") {
    const first = target.closest(".gallery").querySelector(".row:not([hidden]) .enlarge");
    if (first) first.focus();
  } else if (target.matches(".enlarge") && key.startsWith("Arrow")) {
    neighbour(target, key).focus();
  } else {
    return;
  }
  event.preventDefault();
});
