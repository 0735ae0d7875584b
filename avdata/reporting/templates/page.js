"use strict";
document.documentElement.classList.add("js");

const number = (value) => value.toLocaleString("en");

// A form with `data-filters` hides the children of the selected element that do not match its controls. A control
// named X is compared with data-X of each child: a select with one of the values separated by "|", a search field
// with a part of the text. With `data-first`, only so many of the matches are visible, and a button shows more.
const filters = [];
for (const form of document.querySelectorAll("[data-filters]")) {
  const list = document.querySelector(form.dataset.filters);
  const items = [...list.children];
  const output = form.querySelector("output");
  const more = list.parentElement.querySelector(".more");
  const others = list.parentElement.querySelector(".others");
  const groups = others ? JSON.parse(others.dataset.keys) : [];
  const first = Number(form.dataset.first) || Infinity;
  let limit = first;
  const matches = (item) => [...form.elements].filter((control) => control.name && control.value).every((control) => {
    const value = item.dataset[control.name];
    if (control.type === "search") return value.toLowerCase().includes(control.value.trim().toLowerCase());
    return value === control.value || value.split("|").includes(control.value);
  });
  const apply = () => {
    let matching = 0;
    for (const item of items) {
      const matched = matches(item);
      item.hidden = !matched || matching >= limit;
      matching += matched;
      if (item.hidden) for (const audio of item.querySelectorAll("audio")) audio.pause();
    }
    const visible = Math.min(matching, limit);
    const of = matching === items.length ? "" : `, ${number(items.length)} in all`;
    output.textContent = visible === items.length ? `all ${number(visible)} shown` : `${number(visible)} of ${number(matching)} shown${of}`;
    if (more) more.hidden = visible >= matching;
    if (others) showOthers();
  };
  // Keys of samples without a card, by split and label, which match the search.
  const showOthers = () => {
    const { text, split, label } = form.elements;
    const part = text.value.trim().toLowerCase();
    const found = groups
      .filter(([groupSplit, groupLabel]) => part && [groupSplit, ""].includes(split.value) && [groupLabel, ""].includes(label.value))
      .flatMap(([groupSplit, groupLabel, keys]) => keys.split(" ").filter((key) => key.toLowerCase().includes(part)).map((key) => `${key} (${groupSplit}, ${groupLabel})`));
    others.hidden = found.length === 0;
    const rest = found.length > 10 ? ` and ${number(found.length - 10)} more` : "";
    others.textContent = `Samples without a card: ${found.slice(0, 10).join(", ")}${rest}. Show one with: avdata inspect ${others.dataset.dataset} KEY`;
  };
  const reset = () => { limit = first; apply(); };
  form.addEventListener("input", reset);
  form.addEventListener("submit", (event) => event.preventDefault());
  if (more) more.addEventListener("click", (event) => {
    if (!event.target.dataset.more) return;
    const start = items.find((item) => item.hidden && matches(item));
    limit = event.target.dataset.more === "all" ? Infinity : limit + Number(event.target.dataset.more);
    apply();
    const focusable = start && start.querySelector("button, summary");
    if (focusable) focusable.focus({ preventScroll: true });
  });
  filters.push({ form, items, reset, showAll: () => { limit = Infinity; apply(); } });
  apply();
}

// A link to a hidden item resets the filter and shows the item; a link with data-filter sets a control.
const reveal = () => {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const filter = target && target.hidden && filters.find(({ items }) => items.includes(target));
  if (!filter) return;
  filter.form.reset();
  filter.showAll();
  target.scrollIntoView();
};
addEventListener("hashchange", reveal);
reveal();
for (const link of document.querySelectorAll("a[data-filter]")) {
  link.addEventListener("click", () => {
    const { form, reset } = filters.find(({ form: candidate }) => candidate.dataset.filters === "#cards");
    form.reset();
    form.elements[link.dataset.filter].value = link.dataset.choice;
    reset();
  });
}

// Tables with data-sort: a button in each header sorts the rows, by data-value or by text.
for (const table of document.querySelectorAll("table[data-sort]")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const isNumeric = table.tBodies[0].rows[0]?.cells[column].dataset.value !== undefined;
      // Numbers begin with the largest, texts with A.
      const next = { ascending: "descending", descending: "ascending" }[header.ariaSort] ?? (isNumeric ? "descending" : "ascending");
      for (const other of headers) other.ariaSort = null;
      header.ariaSort = next;
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const sign = next === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => sign * value(a).localeCompare(value(b), "en", { numeric: true }));
      table.tBodies[0].append(...rows);
    });
  });
}

// A button saves the visible rows of a table as CSV.
for (const button of document.querySelectorAll("button.export")) {
  button.addEventListener("click", () => {
    const body = document.querySelector(button.dataset.table);
    const rows = [...body.closest("table").tHead.rows, ...[...body.rows].filter((row) => !row.hidden)];
    // A spreadsheet would run a cell that begins with one of these characters as a formula.
    const quote = (text) => `"${text.replace(/^(?=[=+\-@\t\r])/, "'").replaceAll('"', '""')}"`;
    const lines = rows.map((row) => [...row.cells].map((cell) => quote(cell.textContent.trim())).join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
    link.download = button.dataset.name;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const code = button.closest(".code").querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      // Without permission, the text is selected for Ctrl-C.
      getSelection().selectAllChildren(code);
    }
  });
}

// While audio plays, a playhead moves over its spectrogram. Both cover the same window.
const attachPlayhead = (audio, playhead) => {
  const follow = () => {
    playhead.hidden = audio.paused && audio.currentTime === 0;
    playhead.style.left = `${Math.min(100, (100 * audio.currentTime) / Number(audio.dataset.seconds))}%`;
    if (!audio.paused) requestAnimationFrame(follow);
  };
  for (const name of ["play", "seeked", "pause", "ended"]) audio.addEventListener(name, follow);
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
  });
};
for (const audio of document.querySelectorAll(".card audio")) attachPlayhead(audio, audio.closest(".card").querySelector(".playhead"));

// The viewer shows one card enlarged and plays it. Arrow keys step through the visible cards.
const viewer = document.querySelector("#viewer");
if (viewer) {
  const body = viewer.querySelector(".viewer-body");
  let shown = null;
  const show = (card) => {
    shown = card;
    viewer.querySelector("h2").textContent = card.querySelector("h3").textContent;
    const parts = [".tags", ".timeline", "audio", ".pair"].map((name) => card.querySelector(name)).filter(Boolean);
    body.replaceChildren(...parts.map((part) => part.cloneNode(true)));
    const audio = body.querySelector("audio");
    if (!viewer.open) viewer.showModal();
    if (audio) {
      attachPlayhead(audio, body.querySelector(".playhead"));
      audio.play().catch(() => {});
    }
  };
  const step = (distance) => {
    const cards = [...document.querySelectorAll(".card:not([hidden])")];
    show(cards[(cards.indexOf(shown) + distance + cards.length) % cards.length]);
  };
  for (const button of document.querySelectorAll("button.zoom")) button.addEventListener("click", () => show(button.closest(".card")));
  for (const button of viewer.querySelectorAll("[data-step]")) {
    const distance = Number(button.dataset.step);
    button.addEventListener("click", () => (distance ? step(distance) : viewer.close()));
  }
  viewer.addEventListener("keydown", (event) => {
    const distance = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (distance && event.target.tagName !== "AUDIO") step(distance);
  });
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => {
    body.replaceChildren();
    const button = shown.querySelector("button.zoom");
    if (button) button.focus();
  });
}
