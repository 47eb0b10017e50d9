"use strict";
// Tables are sorted by a click on a column's name, or by a list where the columns are stacked.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const key = (row, column) => {
    const data = row.cells[column].dataset;
    if (data.s !== undefined) return data.s;
    return data.n === "" ? NaN : Number(data.n === "inf" ? Infinity : data.n === "-inf" ? -Infinity : data.n);
  };
  const sort = (column) => {
    const up = heads[column].getAttribute("aria-sort") !== "ascending";
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows];
    rows.sort((a, b) => {
      const x = key(a, column);
      const y = key(b, column);
      // What is not known comes last.
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      const order = typeof x === "string" ? String(x).localeCompare(String(y), "en", { numeric: true })
        : x < y ? -1 : x > y ? 1 : 0;
      return up ? order : -order;
    });
    body.append(...rows);
  };
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sort(column)));
  const sorter = document.createElement("label");
  const select = document.createElement("select");
  sorter.className = "sorter";
  sorter.append("Sort by ", select);
  select.append(new Option("as given", ""));
  heads.forEach((head, column) => select.append(new Option(head.textContent, column)));
  select.addEventListener("change", () => { if (select.value !== "") sort(Number(select.value)); });
  table.parentElement.before(sorter);
}
// A line is hidden and shown by a click on its name in the legend.
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    const lines = button.closest("figure").querySelectorAll(`.line[data-place="${button.dataset.place}"]`);
    for (const line of lines) line.classList.toggle("off", !shown);
  });
}
