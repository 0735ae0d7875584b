"use strict";
document.documentElement.classList.add("js");

// A form filters what `data-filters` points at: a control named X is matched against each child's data-X,
// a select as one of the values parted by "|", a search field as a part of the text.
for (const form of document.querySelectorAll("[data-filters]")) {
  const held = [...document.querySelector(form.dataset.filters).children];
  const output = form.querySelector("output");
  const apply = () => {
    let shown = 0;
    for (const one of held) {
      one.hidden = ![...form.elements].filter((control) => control.name && control.value).every((control) => {
        const value = one.dataset[control.name];
        if (control.type === "search") return value.toLowerCase().includes(control.value.trim().toLowerCase());
        return value === control.value || value.split("|").includes(control.value);
      });
      if (one.hidden) for (const audio of one.querySelectorAll("audio")) audio.pause();
      shown += !one.hidden;
    }
    output.textContent = shown === held.length ? `all ${shown.toLocaleString("en")} shown` : `${shown.toLocaleString("en")} of ${held.length.toLocaleString("en")} shown`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
}

// While sound plays, a line wanders over its spectrogram; both cover the same window.
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
