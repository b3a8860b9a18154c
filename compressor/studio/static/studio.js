"use strict";
// The page as the server renders it: parts are fetched and put in place; every number and word comes from there.
const body = document.body;
const message = document.getElementById("message");

function say(text, bad = false) {
  message.textContent = text;
  message.classList.toggle("bad", bad);
}

async function ask(path, data) {
  const options = data === undefined ? {} : {
    method: "POST",
    headers: { "content-type": "application/json", "x-csrf-token": body.dataset.csrf },
    body: JSON.stringify(data),
  };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    say("The studio does not answer: it was stopped, or the network is gone. Your draft is kept.", true);
    return null;
  }
  if (answer.ok) return answer;
  say((await answer.text()).trim(), true);
  return null;
}

async function show(name, query = "") {
  const place = document.querySelector(`[data-part="${name}"]`);
  const answer = place && await ask(`part/${name}${query}`);
  if (!answer) return;
  place.innerHTML = await answer.text();
  place.setAttribute("aria-busy", "false");
  place.dispatchEvent(new CustomEvent("shown", { bubbles: true }));
}

document.getElementById("leave").addEventListener("click", async () => {
  if (await ask("leave", {})) location.reload();
});

const events = new EventSource("events");
let lost = false;
events.addEventListener("open", () => { if (lost) { lost = false; say(""); } });
events.addEventListener("error", () => { lost = true; say("The studio does not answer; trying again.", true); });
events.addEventListener("pictured", async () => { await show("overview"); await show("picture"); await show("findings"); });
events.addEventListener("looked", async () => { await show("picture", detailShown()); await show("findings"); });

function detailShown() {
  const pressed = picture.querySelector("[data-detail][aria-pressed=true]");
  return pressed ? `?detail=${pressed.dataset.detail}` : "";
}

// The network as a picture.
const picture = document.getElementById("picture");
const boxes = () => [...picture.querySelectorAll(".box")];
let zoom = 1;

picture.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (button && button.dataset.detail) await show("picture", `?detail=${button.dataset.detail}`);
  if (button && button.dataset.zoom) {
    const graph = document.getElementById("graph");
    zoom = Math.min(3, Math.max(0.1, zoom * Number(button.dataset.zoom)));
    const [, , width, height] = graph.getAttribute("viewBox").split(" ");
    graph.setAttribute("width", width * zoom);
    graph.setAttribute("height", height * zoom);
  }
  const box = event.target.closest(".box");
  if (box) choose(box);
});

picture.addEventListener("shown", () => { zoom = 1; });

async function choose(box) {
  const groups = new Set(box.dataset.groups.split(" ").filter(Boolean));
  for (const other of boxes()) {
    other.tabIndex = other === box ? 0 : -1;
    other.classList.toggle("chosen", other === box);
    other.classList.toggle("coupled", other !== box && other.dataset.groups.split(" ").some((group) => groups.has(group)));
  }
  const detail = picture.querySelector("[data-detail][aria-pressed=true]").dataset.detail;
  const answer = await ask(`part/box?detail=${detail}&number=${box.dataset.number}`);
  if (answer) document.getElementById("box").innerHTML = await answer.text();
}

picture.addEventListener("keydown", (event) => {
  const box = event.target.closest(".box");
  if (!box) return;
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(box); return; }
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const all = boxes();
  const next = all[Math.min(all.length - 1, Math.max(0, all.indexOf(box) + step))];
  box.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});

picture.addEventListener("input", (event) => {
  if (event.target.id !== "find") return;
  const wanted = event.target.value.trim().toLowerCase();
  let first = null, count = 0;
  for (const box of boxes()) {
    const fits = wanted !== "" && box.getAttribute("aria-label").toLowerCase().includes(wanted);
    box.classList.toggle("fits", fits);
    if (fits) { count += 1; first = first || box; }
  }
  document.getElementById("found").textContent = wanted ? `${count} found` : "";
  if (first) first.scrollIntoView({ block: "nearest", inline: "center" });
});

// What if: every change is shown at once as the server predicts it, and kept where the person lets go.
const planning = document.getElementById("planning");
const control = (id) => document.getElementById(id);
let version = 0, trying = null, waits = false;

function chosen() {
  const widths = {};
  for (const slider of planning.querySelectorAll("[data-width]")) {
    const stops = slider.dataset.stops.split(" ").map(Number);
    if (slider.value !== slider.max) widths[slider.dataset.width] = stops[Number(slider.value)];
  }
  const drop = [...planning.querySelectorAll("[data-block]")].filter((box) => !box.checked).map((box) => box.dataset.block);
  const bits = {};
  for (const select of planning.querySelectorAll("[data-bits]")) if (select.value !== "8") bits[select.dataset.bits] = Number(select.value);
  return {
    widths, drop, bits, form: control("form").value, epochs: Math.round(Number(control("epochs").value)), criterion: control("criterion").value,
  };
}

function spell(slider) {
  const stops = slider.dataset.stops.split(" ");
  const width = stops[Number(slider.value)];
  slider.setAttribute("aria-valuetext", `${width} of ${stops[stops.length - 1]}`);
  slider.parentElement.querySelector("output").textContent = width;
}

function take(draft) {
  version = draft.version;
  for (const slider of planning.querySelectorAll("[data-width]")) {
    const stops = slider.dataset.stops.split(" ").map(Number);
    const width = draft.choice.widths[slider.dataset.width];
    const place = width === undefined ? stops.length - 1 : stops.findIndex((stop) => stop >= width);
    slider.value = place;
    spell(slider);
  }
  for (const box of planning.querySelectorAll("[data-block]")) box.checked = !draft.choice.drop.includes(box.dataset.block);
  for (const select of planning.querySelectorAll("[data-bits]")) select.value = String(draft.choice.bits[select.dataset.bits] || 8);
  control("form").value = draft.choice.form;
  if (control("bits")) control("bits").hidden = draft.choice.form !== "int8";
  control("epochs").value = draft.choice.epochs;
  control("criterion").value = draft.choice.criterion;
  control("undo").disabled = !draft.undo;
  control("redo").disabled = !draft.redo;
  control("tiles").innerHTML = draft.tiles;
  control("recipe").textContent = draft.recipe || "Nothing is chosen yet.";
  document.dispatchEvent(new CustomEvent("drafted"));
}

async function refresh() {
  const answer = control("plan") && await ask("draft");
  if (answer) take(await answer.json());
}

async function change(path, more) {
  say("");
  const answer = await ask(path, { version, ...more });
  if (answer) take(await answer.json());
  else if (control("plan")) { const now = await fetch("draft"); if (now.ok) take(await now.json()); }
}

async function attempt() {
  // One question at a time; of those that came meanwhile only the last counts.
  if (trying) { waits = true; return; }
  trying = ask("try", { choice: chosen() });
  const answer = await trying;
  if (answer) control("tiles").innerHTML = (await answer.json()).tiles;
  trying = null;
  if (waits) { waits = false; attempt(); }
}

planning.addEventListener("shown", () => { if (control("plan")) version = Number(control("plan").dataset.version); });
planning.addEventListener("input", (event) => {
  if (event.target.matches("[data-width]")) { spell(event.target); attempt(); }
});
planning.addEventListener("change", (event) => {
  if (event.target.matches("[data-width], [data-block], [data-bits], #form, #epochs, #criterion")) { waits = false; change("edit", { choice: chosen() }); }
});
planning.addEventListener("click", async (event) => {
  const id = event.target.id;
  if (id === "undo" || id === "redo") change(id, {});
  if (id === "whole") change("edit", { choice: { widths: {}, drop: [], form: "float32", epochs: 8 } });
  if (id === "choose") {
    control("choosing").textContent = "choosing …";
    await change("choose", { percent: Math.round(Number(control("percent").value)) });
    control("choosing").textContent = "";
  }
});
document.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || !control("plan")) return;
  if (event.target.matches("input[type=number], input[type=search], textarea")) return;
  event.preventDefault();
  control(event.shiftKey ? "redo" : "undo").click();
});
events.addEventListener("planned", () => show("plan"));
events.addEventListener("measured", () => {
  if (!control("choose")) return;
  control("choose").disabled = false;
  control("choosing").textContent = "";
  // Who is at a slider keeps it; the losses stand beside them the next time.
  if (!planning.contains(document.activeElement)) show("plan");
});
events.addEventListener("measuring", (event) => {
  const { done, total } = JSON.parse(event.data);
  if (control("choosing") && control("choose").disabled) control("choosing").textContent = `measuring what each part is worth, ${done} of ${total} …`;
});
events.addEventListener("drafted", (event) => { if (JSON.parse(event.data).version !== version) refresh(); });
for (const kind of ["judged", "timed", "measuring"]) events.addEventListener(kind, async (event) => {
  if (JSON.parse(event.data).version !== version || !control("tiles")) return;
  const answer = await ask("draft");
  const draft = answer && await answer.json();
  // Who is dragging meanwhile sees what is tried, not what was kept.
  if (draft && draft.version === version && !trying) control("tiles").innerHTML = draft.tiles;
});

// Runs: begun from the draft as it is kept, watched as they go.
const runs = document.getElementById("runs");
let showing = false, again = false;

async function showRuns() {
  if (showing) { again = true; return; }
  showing = true;
  const called = (item) => item.closest("article").getAttribute("aria-labelledby") + item.firstElementChild.textContent;
  const open = new Set([...runs.querySelectorAll("details[open]")].map(called));
  await show("runs");
  for (const item of runs.querySelectorAll("details")) item.open = open.has(called(item));
  showing = false;
  if (again) { again = false; showRuns(); }
}

runs.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  say("");
  if (button.id === "run") await ask("run", { version });
  if (button.id === "compare") {
    const answer = await ask(`part/beside?one=${control("one").value}&other=${control("other").value}`);
    if (answer) control("beside").innerHTML = await answer.text();
    return;
  }
  if (button.dataset.do === "discard" && !confirm(`Delete ${button.dataset.run} and its files?`)) return;
  if (button.dataset.do) await ask(`runs/${button.dataset.run}/${button.dataset.do}`, {});
  showRuns();
});
runs.addEventListener("toggle", async (event) => {
  const item = event.target, name = item.dataset.stages;
  if (!name || !item.open || item.lastElementChild.innerHTML) return;
  const answer = await ask(`part/stages?run=${name}`);
  if (answer) item.lastElementChild.innerHTML = await answer.text();
}, true);
events.addEventListener("planned", showRuns);
events.addEventListener("ran", showRuns);
