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
