"use strict";
const body = document.querySelector(".board tbody");
const rows = [...body.rows];
const heads = [...document.querySelectorAll(".board thead th")];
const control = (name) => document.getElementById(name);

function filter() {
  const track = control("track").value, ball = control("ball").value;
  const words = control("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = (track && row.dataset.track !== track) || (ball && row.dataset.ball !== ball)
      || !words.every((word) => text.includes(word));
  }
  control("shown").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
}

// Numbers by size, words by the alphabet; what is lacking comes last, either way.
function sort(column) {
  const head = heads[column], isNumber = column > 1;
  const isDown = head.hasAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : isNumber && column > 2;
  heads.forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", isDown ? "descending" : "ascending");
  const value = (row) => row.cells[column].dataset.value;
  const order = (a, b) => (isNumber ? a - b : a.localeCompare(b)) * (isDown ? -1 : 1);
  rows.sort((a, b) => (value(a) === "") - (value(b) === "") || order(value(a), value(b)));
  body.append(...rows);
}

heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => sort(column)));
["track", "ball", "words"].forEach((name) => control(name).addEventListener("input", filter));
// A browser may have kept the choices of an earlier visit.
filter();
