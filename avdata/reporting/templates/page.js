"use strict";
document.documentElement.classList.add("js");

// A form with `data-filters` hides the children of the selected element that do not match its controls. A control
// named X is compared with data-X of each child: a select with one of the values separated by "|", a search field
// with a part of the text.
for (const form of document.querySelectorAll("[data-filters]")) {
  const items = [...document.querySelector(form.dataset.filters).children];
  const output = form.querySelector("output");
  const apply = () => {
    let visible = 0;
    for (const item of items) {
      item.hidden = ![...form.elements].filter((control) => control.name && control.value).every((control) => {
        const value = item.dataset[control.name];
        if (control.type === "search") return value.toLowerCase().includes(control.value.trim().toLowerCase());
        return value === control.value || value.split("|").includes(control.value);
      });
      if (item.hidden) for (const audio of item.querySelectorAll("audio")) audio.pause();
      visible += !item.hidden;
    }
    output.textContent = visible === items.length ? `all ${visible.toLocaleString("en")} shown` : `${visible.toLocaleString("en")} of ${items.length.toLocaleString("en")} shown`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
}

// While audio plays, a playhead moves over its spectrogram. Both cover the same window.
for (const audio of document.querySelectorAll("audio")) {
  const playhead = audio.closest("article").querySelector(".playhead");
  const follow = () => {
    playhead.hidden = audio.paused && audio.currentTime === 0;
    playhead.style.left = `${(100 * audio.currentTime) / Number(audio.dataset.seconds)}%`;
    if (!audio.paused) requestAnimationFrame(follow);
  };
  for (const name of ["play", "seeked", "pause", "ended"]) audio.addEventListener(name, follow);
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
  });
}
