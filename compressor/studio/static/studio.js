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

async function show(name) {
  const place = document.querySelector(`[data-part="${name}"]`);
  const answer = place && await ask(`part/${name}`);
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
events.addEventListener("looked", () => show("overview"));
