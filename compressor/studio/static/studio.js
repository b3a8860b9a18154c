"use strict";
// The page as the server renders it: parts are fetched and put in place; every number and word comes from there.
const body = document.body;
const message = document.getElementById("message");

let said = 0;

// What is wrong stays until something else is said.
function say(text, bad = false) {
  clearTimeout(said);
  message.textContent = text;
  message.classList.toggle("bad", bad);
  if (text && !bad) said = setTimeout(say, 8000, "");
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

// What is on the page already stays the same element: focus and what is folded open are not lost.
const gently = {
  morphStyle: "innerHTML",
  ignoreActiveValue: true,
  callbacks: {
    beforeAttributeUpdated: (name, node) => !(name === "open" && node.tagName === "DETAILS"),
    beforeNodeMorphed: (node) => !(node.dataset && node.dataset.filled),
  },
};

// What was asked for by itself is not emptied when the part around it is shown anew.
function fill(place, html) {
  place.innerHTML = html;
  place.dataset.filled = "yes";
}

const asking = {};

// Thousands of boxes at once are not worth comparing: the button that was pressed keeps the focus.
function drawn(place, html) {
  const focus = place.contains(document.activeElement) && document.activeElement.dataset.detail;
  place.innerHTML = html;
  if (focus) place.querySelector(`[data-detail="${focus}"]`).focus();
}

async function show(name, query = "") {
  const place = document.querySelector(`[data-part="${name}"]`);
  const mine = asking[name] = (asking[name] || 0) + 1;
  const answer = await ask(`part/${name}${query}`);
  if (!answer) return false;
  const html = await answer.text();
  // Answers may come in another order than they were asked for: the last question counts.
  if (mine !== asking[name]) return true;
  if (name === "picture") drawn(place, html);
  else Idiomorph.morph(place, html, gently);
  place.setAttribute("aria-busy", "false");
  place.dispatchEvent(new CustomEvent("shown", { bubbles: true }));
  return true;
}

// Events come as fast as others work: what they make the page ask for is asked once at a time, and rests in between.
const REST_MS = 300;

function steadily(act) {
  let busy = false, again = false;
  return async () => {
    if (busy) { again = true; return; }
    busy = true;
    try {
      do {
        again = false;
        await act();
        await new Promise((done) => setTimeout(done, REST_MS));
      } while (again);
    } finally { busy = false; }
  };
}

document.getElementById("leave").addEventListener("click", async () => {
  if (await ask("leave", {})) location.reload();
});

// What happens is told by a stream of events. It is closed while nobody looks: a browser has six connections for all its
// pages. A new one begins with the latest of each kind. Where a proxy holds streams back, the page asks instead.
const heard = {}, last = {}, counts = {};
const once = new Set(["pictured", "looked", "planned", "measured"]);
let events = null, lost = false, later = 0;

function on(kind, act) { heard[kind] = [...(heard[kind] || []), act]; }

function hear(kind, data) {
  // What happens once in the life of a server is told again by each stream.
  if (once.has(kind) && last[kind] === data) return;
  last[kind] = data;
  for (const act of heard[kind] || []) act(JSON.parse(data));
}

function found() {
  if (!lost) return;
  lost = false;
  say("");
  refresh();
  showRuns();
}

function miss() {
  lost = true;
  say("The studio does not answer; trying again. Your draft is kept.", true);
}

// Whether the session has ended, mostly because the studio was started again.
async function ended() {
  const answer = await fetch("latest").catch(() => null);
  if (!answer || answer.status !== 401) return false;
  say("The studio was started again, or your session has ended. Your draft is kept: open the link that stands in the terminal.", true);
  return true;
}

function listen() {
  silence();
  events = new EventSource("events");
  later = setTimeout(poll, 5000);
  events.addEventListener("here", () => { clearTimeout(later); found(); });
  events.addEventListener("error", async () => {
    clearTimeout(later);
    miss();
    if (events.readyState === EventSource.CLOSED && !await ended()) later = setTimeout(listen, 3000);
  });
  for (const kind of Object.keys(heard)) events.addEventListener(kind, (event) => hear(kind, event.data));
}

async function poll() {
  silence();
  const answer = await fetch("latest").catch(() => null);
  if (answer && answer.status === 401) { await ended(); return; }
  if (answer && answer.ok) {
    found();
    for (const [kind, [count, data]] of Object.entries(await answer.json())) {
      if (counts[kind] !== count) { counts[kind] = count; hear(kind, JSON.stringify(data)); }
    }
  } else miss();
  if (!document.hidden) later = setTimeout(poll, 2000);
}

function silence() {
  clearTimeout(later);
  if (events) events.close();
}

document.addEventListener("visibilitychange", () => { if (document.hidden) silence(); else listen(); });

on("pictured", async () => { await show("overview"); await show("picture", detailShown()); });
on("looked", async () => { await show("overview"); await show("picture", detailShown()); await show("findings"); await open(draft); });

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
  const to = button && [...planning.querySelectorAll("[data-width], [data-block]")].find((item) =>
    (button.dataset.toWidth && item.dataset.width === button.dataset.toWidth) || (button.dataset.toBlock && item.dataset.block === button.dataset.toBlock));
  if (to) { to.scrollIntoView({ block: "center" }); to.focus(); }
  else if (button && (button.dataset.toWidth || button.dataset.toBlock)) say("The controls are not there yet; they appear below the picture.");
});

picture.addEventListener("shown", () => { zoom = 1; mark(); });

// What the draft takes out or narrows is marked in the picture as well.
function mark() {
  if (!control("plan")) return;
  const { widths, drop } = chosen();
  for (const box of picture.querySelectorAll("[data-blocks], [data-widths]")) {
    const out = JSON.parse(box.dataset.blocks || "[]").some((name) => drop.includes(name));
    const narrow = JSON.parse(box.dataset.widths || "[]").filter((name) => name in widths);
    box.classList.toggle("out", out);
    box.classList.toggle("narrow", !out && narrow.length > 0);
    box.dataset.says = box.dataset.says || box.getAttribute("aria-label");
    const more = out ? ", goes" : narrow.length ? `, narrowed to ${narrow.map((name) => widths[name]).join(" and ")}` : "";
    box.setAttribute("aria-label", box.dataset.says + more);
  }
}

// What a box is called stands where the pointer rests.
picture.addEventListener("pointerover", (event) => {
  const box = event.target.closest(".box");
  if (!box) return;
  box.closest(".graph").title = box.getAttribute("aria-label");
});

async function choose(box) {
  const groups = new Set((box.dataset.groups || "").split(" ").filter(Boolean));
  for (const other of boxes()) {
    other.tabIndex = other === box ? 0 : -1;
    other.classList.toggle("chosen", other === box);
    other.classList.toggle("coupled", other !== box && (other.dataset.groups || "").split(" ").some((group) => groups.has(group)));
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
let draft = body.dataset.draft, version = 0, trying = null, waits = false;

function asked() { return draft ? `?draft=${encodeURIComponent(draft)}` : ""; }

// Which draft is open stands in the address: it is there after the page was loaded again, and in every tab another.
function opened(key, number) {
  if (key !== draft || !location.search) history.replaceState(null, "", `?draft=${encodeURIComponent(key)}`);
  draft = key;
  version = number;
}

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

function take(taken) {
  // An answer from before the last edit.
  if (taken.draft === draft && taken.version < version) return;
  opened(taken.draft, taken.version);
  for (const slider of planning.querySelectorAll("[data-width]")) {
    const stops = slider.dataset.stops.split(" ").map(Number);
    const width = taken.choice.widths[slider.dataset.width];
    const place = width === undefined ? stops.length - 1 : stops.findIndex((stop) => stop >= width);
    slider.value = place;
    spell(slider);
  }
  for (const box of planning.querySelectorAll("[data-block]")) box.checked = !taken.choice.drop.includes(box.dataset.block);
  for (const select of planning.querySelectorAll("[data-bits]")) select.value = String(taken.choice.bits[select.dataset.bits] || 8);
  control("form").value = taken.choice.form;
  if (control("bits")) control("bits").hidden = taken.choice.form !== "int8";
  control("epochs").value = taken.choice.epochs;
  control("criterion").value = taken.choice.criterion;
  control("undo").disabled = !taken.undo;
  control("redo").disabled = !taken.redo;
  control("tiles").innerHTML = taken.tiles;
  control("recipe").textContent = taken.recipe || "Nothing is chosen yet.";
  mark();
  runnable();
}

async function refresh() {
  if (!control("plan")) return;
  const before = draft;
  const answer = await fetch(`draft${asked()}`).catch(() => null);
  if (before !== draft) return;
  if (answer && answer.ok) take(await answer.json());
  else if (answer && answer.status === 404) await open("");
}

// Shows another draft; without a key the first one, and where there is no such draft as well.
async function open(key) {
  // What is asked for of one draft is refused by another.
  if (key !== draft) version = -1;
  draft = key;
  if (!await show("plan", asked()) && key) { draft = ""; await show("plan"); }
  if (control("plan")) await show("drafts", asked());
}

let changing = 0, refused = false, unsent = false, turn = Promise.resolve();

// One change at a time, each on the version that the one before gave. `more` is asked when its turn has come.
function change(path, more = () => ({})) {
  changing += 1;
  turn = turn.catch(() => {}).then(() => send(path, more()));
  return turn;
}

async function send(path, data) {
  if (!refused) say("");
  const answer = refused ? null : await ask(path, { draft, version, ...data });
  changing -= 1;
  // What waits was chosen on what is not there any more.
  refused = !answer && changing > 0;
  if (!answer) { await refresh(); return false; }
  const before = draft, taken = await answer.json();
  // What was chosen meanwhile is sent next, and must not be put back.
  if (changing) opened(taken.draft, taken.version);
  else take(taken);
  // Another draft may be somebody else's no more.
  if (taken.draft !== before) await show("plan", asked());
  await show("drafts", asked());
  return true;
}

// Waits for what was chosen last; whether it was kept, so that the draft is what the page shows.
async function settled() {
  const waiting = changing > 0, kept = await turn.catch(() => false);
  return !waiting || kept;
}

// Of edits that wait only one is sent: it takes the page as it is then.
function edit() {
  if (unsent) return;
  unsent = true;
  change("edit", () => { unsent = false; return { choice: chosen() }; });
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

planning.addEventListener("shown", () => {
  const { draft: key, version: number } = control("plan") ? control("plan").dataset : {};
  if (key === draft && Number(number) < version) refresh();
  else if (key) opened(key, Number(number));
  mark();
});
planning.addEventListener("input", (event) => {
  if (event.target.matches("[data-width]")) { spell(event.target); mark(); attempt(); }
});
planning.addEventListener("change", (event) => {
  if (event.target.matches("[data-width], [data-block], [data-bits], #form, #epochs, #criterion")) { waits = false; edit(); }
});
planning.addEventListener("click", async (event) => {
  const id = event.target.id;
  if (id === "undo" || id === "redo") change(id);
  if (id === "whole") change("edit", () => ({ choice: { widths: {}, drop: [], form: "float32", epochs: 8 } }));
  if (id === "choose") {
    control("choosing").textContent = "choosing …";
    await change("choose", () => ({ percent: Math.round(Number(control("percent").value)) }));
    control("choosing").textContent = "";
  }
});
const drafts = document.getElementById("drafts");
drafts.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const name = control("draft-name") && control("draft-name").value;
  if (button.dataset.open) open(button.dataset.open);
  if (button.id === "rename" && await change("rename", () => ({ name }))) say(`It is called "${name.trim()}" now.`);
  if (button.id === "save" && await change("save", () => ({ name }))) say(`Saved as "${name.trim()}", which is open now.`);
  if (button.id === "delete" && confirm(`Delete the draft "${name}"?`)) await change("delete");
});
drafts.addEventListener("keydown", (event) => {
  if (event.target.id === "draft-name" && event.key === "Enter" && control("rename")) control("rename").click();
});
document.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || !control("plan")) return;
  if (event.target.matches("input[type=number], input[type=search], input[type=text], textarea")) return;
  event.preventDefault();
  control(event.shiftKey ? "redo" : "undo").click();
});
on("planned", () => open(draft));
on("measured", () => {
  if (!control("choose")) return;
  control("choose").disabled = false;
  control("choosing").textContent = "";
  // Who is at a slider keeps it; the losses stand beside them the next time.
  if (!planning.contains(document.activeElement)) open(draft);
});
on("measuring", ({ done, total }) => {
  if (control("choosing") && control("choose").disabled) control("choosing").textContent = `measuring what each part is worth, ${done} of ${total} …`;
});
const showDrafts = steadily(() => show("drafts", asked()));
const showTiles = steadily(async () => {
  const answer = await ask(`draft${asked()}`);
  const taken = answer && await answer.json();
  // Who is dragging meanwhile sees what is tried, not what was kept.
  if (taken && taken.draft === draft && taken.version === version && !trying) control("tiles").innerHTML = taken.tiles;
});
on("drafted", async (told) => {
  // Of this page's own change the answer tells.
  if (changing) return;
  if (told.draft === draft && told.version !== version) await refresh();
  showDrafts();
});
for (const kind of ["judged", "timed", "measuring"]) on(kind, (told) => {
  if (!control("tiles") || changing) return;
  if (kind !== "measuring") showDrafts();
  if (kind !== "judged" || (told.draft === draft && told.version === version)) showTiles();
});

// Runs: begun from the draft as it is kept, watched as they go.
const runs = document.getElementById("runs");
let showing = false, again = false;

// An empty draft has nothing to run.
function runnable() {
  const button = control("run");
  if (button && control("recipe")) button.disabled = button.dataset.able !== "yes" || control("recipe").textContent === "Nothing is chosen yet.";
}
runs.addEventListener("shown", runnable);

async function showRuns() {
  if (showing) { again = true; return; }
  showing = true;
  const chosen = ["one", "other"].map((id) => control(id) && control(id).value);
  await show("runs");
  ["one", "other"].forEach((id, number) => { if (control(id) && chosen[number]) control(id).value = chosen[number]; });
  showing = false;
  if (again) { again = false; showRuns(); }
}

runs.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  say("");
  if (button.id === "run" && await settled()) await ask("run", { draft, version });
  if (button.id === "compare") {
    const answer = await ask(`part/beside?one=${control("one").value}&other=${control("other").value}`);
    if (answer) fill(control("beside"), await answer.text());
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
  if (answer) fill(item.lastElementChild, await answer.text());
}, true);
on("planned", showRuns);
on("ran", showRuns);
listen();
