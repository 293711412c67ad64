// What htmx has no attribute for: keys, and answers that appear while they are written. Text of models only ever
// becomes text: no markup is made here.
"use strict";

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && typing?.form) return typing.form.requestSubmit();
  if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  document.querySelector(`[data-key="${CSS.escape(event.key)}"]`)?.click();
});

const ask = document.getElementById("ask");
let running = null;

ask?.addEventListener("submit", (event) => {
  event.preventDefault();
  running?.abort();
  const all = new AbortController();
  running = all;
  const form = new FormData(ask);
  const models = [...ask.querySelectorAll("[name=models]:checked")];
  const corpora = form.get("corpus") ? ["", form.get("corpus")] : [""];
  const answers = document.getElementById("answers"), asked = document.getElementById("asked");
  answers.replaceChildren();
  if (!models.length) return void (asked.textContent = "Choose a model first.");
  const jobs = [];
  for (const seed of form.get("seeds").split(",")) {
    for (const model of models) {
      for (const corpus of corpora) {
        const fields = new URLSearchParams({ model: model.value, seed: seed.trim(), corpus });
        for (const name of ["token", "system", "question", "temperature", "most_tokens"]) fields.set(name, form.get(name));
        const box = document.getElementById("box").content.cloneNode(true).firstElementChild;
        box.classList.add(model.dataset.kind, ...(corpus ? ["with"] : []));
        box.querySelector("h3").textContent = `${model.value}${corpus ? " with passages" : ""}, seed ${seed.trim()}`;
        answers.append(box);
        jobs.push(answer(box, fields, all.signal));
      }
    }
  }
  asked.textContent = `${jobs.length} ${jobs.length === 1 ? "answer is" : "answers are"} being written …`;
  const stop = document.getElementById("stop");
  stop.disabled = false;
  stop.onclick = () => all.abort();
  Promise.all(jobs).then(() => {
    if (running !== all) return;
    asked.textContent = all.signal.aborted ? "Stopped." : "All answers are there.";
    stop.disabled = true;
  });
});

async function answer(box, fields, signal) {
  const text = box.querySelector("pre"), told = box.querySelector(".told"), began = performance.now();
  let pieces = 0, why = "";
  told.textContent = "waiting …";
  try {
    const reply = await fetch(ask.action, { method: "POST", body: fields, signal });
    if (reply.redirected) return void location.reload();  // the session has ended
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    const passages = JSON.parse(reply.headers.get("x-luthier-passages") || "[]");
    for await (const event of eventsOf(reply)) {
      if (event.error) throw new Error(event.error.message);
      const piece = event.choices?.[0]?.delta?.content;
      if (piece) { text.textContent += piece; pieces += 1; }
      why = event.choices?.[0]?.finish_reason || why;
      told.textContent = `${pieces} pieces in ${((performance.now() - began) / 1000).toFixed(1)} s${why === "length" ? ", cut at the limit" : ""}`;
    }
    passages.forEach((title, number) => { told.textContent += ` · [${number + 1}] ${title}`; });
    if (!text.textContent) told.textContent += " · the model said nothing";
  } catch (error) {
    told.textContent = error.name === "AbortError" ? "stopped" : error.message;
  }
}

async function* eventsOf(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    const lines = (rest + (value || "")).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:") && line.slice(5).trim() !== "[DONE]") yield JSON.parse(line.slice(5));
    }
    if (done) return;
  }
}
