// A page that replays a trace. state = where we are; show() draws it. The lines are those of the
// trace's file, and nothing is fetched. Text only ever enters the page as text, never as markup.
"use strict";
(() => {
const $ = (id) => document.getElementById(id);
const { lines, scale } = JSON.parse($("data").textContent);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const PACE = 320, REST = 900; // milliseconds of a step, and of noise and commits

// ---- The run: every token's words, and a frame for each moment. ----
const words = new Map(), frames = [], canvases = [];
const about = lines[0], end = lines.at(-1);
let draft = null, before = [];
for (const line of lines) {
  for (const [id, word] of Object.entries(line.words ?? {})) words.set(Number(id), word);
  if (line.kind === "draft") before = line.tokens;
  if (line.kind === "step") {
    if (draft === null) {
      draft = { number: canvases.length, steps: [], commit: null };
      canvases.push(draft);
      frames.push({ canvas: draft, kind: "noise", best: before, after: before });
    }
    draft.steps.push(line);
    frames.push({ ...line, canvas: draft });
  }
  if (line.kind === "commit") {
    const last = draft.steps.at(-1);
    draft.commit = line;
    frames.push({ ...last, canvas: draft, kind: "commit", after: last.best });
    draft = null;
  }
}
const spoken = canvases.map((one) => one.commit.text ||
  (words.get(one.commit.tokens[0])?.[0] === "id" ? one.commit.tokens.join(" ") + " " : ""));
const brief = spoken.join("").length < 240 && spoken.join("").split("\n").length < 6;
const mean = (frame) => frame.entropy.reduce((sum, one) => sum + one, 0) / frame.entropy.length;
const count = (flags) => flags.split("1").length - 1;
const shade = (nats) => Math.min(scale.levels - 1, Math.round(
  Math.log1p(nats / scale.knee) / Math.log1p(scale.top / scale.knee) * (scale.levels - 1)));
const nats = (number) => number < 0.00005 ? "0" : number.toFixed(number < 0.1 ? 4 : 2);

// ---- How a token reads: in a cell, and in words. ----
function face(id) {
  const [kind, text] = words.get(id);
  if (kind === "mark") return "◇";
  if (kind === "bytes") return "·";
  return text.replaceAll("\n", "↵") || "·";
}
function spell(id) {
  const [kind, text] = words.get(id);
  if (kind === "mark") return text;
  if (kind === "bytes") return `byte ${text}`;
  if (kind === "id") return `token ${text}`;
  return `“${text.trim() ? text : text.replaceAll("\n", "↵").replaceAll(" ", "␣")}”`;
}
const WIDE = new RegExp("[\\u1100-\\u115f\\u2e80-\\ua4cf\\uac00-\\ud7a3\\uf900-\\ufaff" +
  "\\ufe30-\\ufe6f\\uff00-\\uff60\\u{1f300}-\\u{1faff}\\u{20000}-\\u{3fffd}]", "u");
const width = (text) =>
  Math.max(1, [...text].reduce((sum, one) => sum + (WIDE.test(one) ? 2 : 1), 0));

// ---- Making elements. ----
function make(name, props = {}, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (key in made) made[key] = value; else made.setAttribute(key, value);
  }
  made.append(...inside);
  return made;
}
function draw(name, props, ...inside) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(props)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
}
const filled = (level) => {
  const made = make("u");
  made.style.background = `var(--c${level})`;
  return made;
};

// ---- State. ----
const state = { at: 0, playing: false, view: "best", open: null, pinned: false };
let cells = [], shown = null, timer = 0;

function build(canvas) {
  // Each position is, at all times, as wide as the token it ends with: text settles in its place.
  const final = canvas.steps.at(-1).best, box = $("canvas");
  const few = final.length <= 64;
  box.className = few ? "few" : "";
  box.replaceChildren();
  cells = final.map((id, place) => {
    const text = face(id), trimmed = text.trim();
    const cell = make("button", { type: "button", tabIndex: place ? -1 : 0 }, make("b"));
    cell.style.setProperty("--w", width(trimmed || text));
    cell.dataset.place = place;
    const next = face(final[place + 1] ?? id);
    if (/^ +\S/.test(next)) cell.dataset.gap = ""; // a word begins behind it
    box.append(cell);
    if (text.endsWith("↵") && place < canvas.commit.tokens.length) box.append(make("i"));
    return cell;
  });
  shown = canvas;
}

function paint(frame) {
  const { canvas } = frame, kept = canvas.commit.tokens.length;
  cells.forEach((cell, place) => {
    const noise = frame.kind === "noise", done = frame.kind === "commit";
    const loose = !done && (noise || frame.accepted[place] === "0");
    const id = frame[state.view][place];
    const doubt = noise ? scale.levels - 1 : done ? 0 : shade(frame.entropy[place]);
    const revised = !noise && !done && frame.revised[place] === "1";
    cell.firstChild.textContent = face(id).trim();
    cell.style.background = done && place >= kept ? "" : `var(--c${doubt})`;
    cell.className = ["cell", "gap" in cell.dataset && "gap", loose && "loose",
      revised && "revised", done && place >= kept && "past", place === state.open && "same"]
      .filter(Boolean).join(" ");
    cell.setAttribute("aria-label", `${place + 1}: ${describe(frame, place)}`);
  });
}

function describe(frame, place) {
  const token = spell(frame[state.view][place]);
  if (frame.kind === "noise") return `${token}, noise`;
  if (frame.kind === "commit") {
    return `${token}, ${place < frame.canvas.commit.tokens.length ? "committed" : "left out"}`;
  }
  const kept = frame.accepted[place] === "1" ? "kept" : "noise again";
  const revised = frame.revised[place] === "1" ? ", revised" : "";
  return `${token}, ${nats(frame.entropy[place])} nats, ${kept}${revised}`;
}

function title(frame) {
  const several = canvases.length > 1;
  const canvas = several ? `Canvas ${frame.canvas.number + 1} of ${canvases.length}, ` : "";
  const last = frame.canvas.steps.at(-1).step;
  const step = { noise: "noise", commit: `committed after ${last} steps` }[frame.kind] ??
    `step ${frame.step} of ${last}`;
  return canvas ? canvas + step : step[0].toUpperCase() + step.slice(1);
}

function figures(frame) {
  if (frame.kind === "noise") return `${frame.best.length} random tokens`;
  if (frame.kind === "commit") {
    return `${frame.canvas.commit.tokens.length} of ${frame.best.length} tokens join the answer`;
  }
  return `mean ${nats(mean(frame))} nats, ${count(frame.accepted)} of ${frame.best.length} kept, ` +
    `${count(frame.revised)} revised, T ${frame.temperature.toFixed(2)}`;
}

function show() {
  const frame = frames[state.at];
  if (frame.canvas !== shown) { close(); build(frame.canvas); }
  paint(frame);
  const done = frame.canvas.number + (frame.kind === "commit" ? 1 : 0);
  $("now").textContent = spoken.slice(0, done).join("");
  $("said").scrollTop = $("said").scrollHeight;
  // Room for a short answer from the start on, so that nothing moves; a long one grows.
  $("later").textContent = brief ? spoken.slice(done).join("") : "";
  $("where").textContent = title(frame);
  $("figures").textContent = figures(frame);
  $("slider").value = state.at;
  $("slider").setAttribute("aria-valuetext", `${title(frame)}; ${figures(frame)}`);
  point();
  if (state.open !== null) detail();
}

function go(at, told = true) {
  state.at = Math.max(0, Math.min(frames.length - 1, at));
  show();
  if (told && !state.playing) {
    const frame = frames[state.at];
    const text = frame[state.view].map((id) => words.get(id)[0] === "text" ? words.get(id)[1] : "");
    $("told").textContent = `${title(frame)}. ${text.join("").trim()}`;
  }
}

function play(on) {
  clearTimeout(timer);
  state.playing = on;
  $("play").classList.toggle("playing", on);
  $("play").setAttribute("aria-label", on ? "Pause" : "Play");
  if (!on) return;
  if (state.at === frames.length - 1) go(0, false);
  const tick = () => {
    if (state.at === frames.length - 1) return play(false);
    go(state.at + 1, false);
    wait();
  };
  const wait = () => {
    const rest = frames[state.at].kind === "step" ? PACE : REST;
    timer = setTimeout(tick, rest / Number($("speed").value));
  };
  wait();
}

// ---- One position's history. ----
function detail() {
  const frame = frames[state.at], place = state.open, steps = frame.canvas.steps;
  const runs = [];
  for (const step of steps) {
    if (runs.at(-1)?.id === step.best[place]) runs.at(-1).to = step.step;
    else runs.push({ id: step.best[place], from: step.step, to: step.step });
  }
  const past = make("div", { className: "past-steps", "aria-hidden": "true" });
  for (const step of steps) {
    const bar = filled(shade(step.entropy[place]));
    bar.classList.toggle("here", step.step === frame.step);
    past.append(bar);
  }
  const cut = Math.max(0, runs.length - 8), settled = runs.at(-1).from;
  const when = (run) => run.from === run.to ? `${run.from} ` : `${run.from}–${run.to} `;
  const list = make("ol", {}, ...runs.slice(cut).map((run) =>
    make("li", {}, when(run), make("b", {}, spell(run.id)))));
  if (cut) list.prepend(make("li", {}, `${cut} earlier`));
  const id = frame[state.view][place];
  $("card").replaceChildren(
    make("h3", {}, spell(id)),
    make("p", {}, `position ${place + 1}, token ${id}` + (frame.kind === "noise" ? ", noise" :
      frame.kind === "commit" ? "" : describe(frame, place).slice(spell(id).length))),
    past, list,
    make("p", {}, settled === 1 ? "the same guess from the first step on"
      : `settled at step ${settled}`));
  $("card").hidden = false;
  const at = cells[place].getBoundingClientRect(), card = $("card").getBoundingClientRect();
  const middle = at.left + at.width / 2 - card.width / 2;
  const left = Math.max(16, Math.min(innerWidth - card.width - 16, middle));
  const below = at.bottom + 10 + card.height < innerHeight;
  $("card").style.left = `${left}px`;
  $("card").style.top = `${below ? at.bottom + 10 : Math.max(8, at.top - card.height - 10)}px`;
}
function inspect(place, pinned) {
  state.open = place;
  state.pinned = pinned;
  paint(frames[state.at]);
  detail();
}
function close() {
  if (state.open === null) return;
  state.open = null;
  state.pinned = false;
  $("card").hidden = true;
  paint(frames[state.at]);
}

// ---- The chart: mean entropy above, positions kept below, on one axis of steps. ----
let point = () => {};
function chart() {
  const box = $("chart"), wide = box.clientWidth, ceiling = 22, line = 82, roof = 110, base = 154;
  const most = Math.max(...frames.filter((f) => f.kind === "step").map(mean), 0.01);
  const full = Math.max(...canvases.map((one) => one.steps[0].best.length));
  const slot = wide / frames.length, column = (at) => (at + 0.5) * slot;
  const final = canvases.at(-1).steps.at(-1);
  const said = `Mean entropy goes from ${nats(mean(frames[1]))} nats at the first step to ` +
    `${nats(mean(final))} at the last; ${end.stats.steps.join(" and ")} steps.`;
  const svg = draw("svg",
    { viewBox: `0 0 ${wide} 174`, height: 174, role: "img", "aria-label": said });
  const up = (frame) => line - (line - ceiling) * mean(frame) / most;
  for (const one of canvases) {
    const own = frames.map((f, at) => [f, at])
      .filter(([f]) => f.canvas === one && f.kind === "step");
    const points = own.map(([f, at]) => `${column(at).toFixed(1)} ${up(f).toFixed(1)}`);
    const [first, last] = [column(own[0][1]), column(own.at(-1)[1])];
    const curve = points.join("L");
    svg.append(
      draw("path", { class: "area", d: `M${first} ${line}L${curve}L${last} ${line}Z` }),
      draw("path", { class: "curve", d: `M${curve}` }));
    if (one.number) {
      const x = column(own[0][1] - 1) - slot / 2;
      svg.append(draw("path",
        { class: "axis", d: `M${x} ${ceiling}V${base}`, "stroke-dasharray": "2 3" }));
    }
    for (const [f, at] of own) {
      const tall = (base - roof) * count(f.accepted) / full;
      const thick = Math.max(1, Math.min(slot - 2, 14));
      svg.append(draw("rect", { class: "bar", "data-at": at, x: column(at) - thick / 2,
        y: base - tall, width: thick, height: tall, rx: Math.min(2, thick / 2) }));
    }
  }
  for (const y of [line, base]) svg.append(draw("path", { class: "axis", d: `M0 ${y}H${wide}` }));
  const label = (x, y, text) => svg.append(draw("text", { x, y }, text));
  label(0, 11, `mean entropy, up to ${nats(most)} nats`);
  label(0, 102, `positions kept, of ${full}`);
  for (const one of canvases) {
    const start = frames.findIndex((f) => f.canvas === one);
    if (slot * one.steps.length < 60) continue;
    label(one.number ? column(start) - slot / 2 + 6 : 0, base + 16,
      canvases.length > 1 ? `canvas ${one.number + 1}` : `${one.steps.length} steps`);
  }
  const cursor = draw("path", { class: "cursor" });
  svg.append(cursor, draw("circle", { class: "dot", id: "dot", r: 5 }));
  box.replaceChildren(svg);
  box.onpointerdown = box.onpointermove = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    play(false);
    go(Math.floor((event.clientX - box.getBoundingClientRect().left) / slot));
  };
  point = () => {
    const frame = frames[state.at], x = column(state.at);
    cursor.setAttribute("d", `M${x} ${ceiling}V${line}M${x} ${roof}V${base}`);
    $("dot").setAttribute("cx", x);
    $("dot").setAttribute("cy", frame.kind === "noise" ? up(frame.canvas.steps[0]) : up(frame));
    for (const bar of svg.querySelectorAll(".bar")) {
      bar.classList.toggle("here", Number(bar.dataset.at) === state.at);
    }
  };
}

// ---- What stands still. ----
function still() {
  $("prompt").textContent = about.prompt.trim() || "(a prompt without words)";
  const { stats } = end, steps = stats.steps.reduce((sum, one) => sum + one, 0);
  const several = canvases.length > 1 ? ` in ${canvases.length} canvases` : "";
  const facts = { model: about.model, seed: about.seed, steps: `${steps}${several}`,
    tokens: stats.new_tokens, "tokens per forward": stats.tokens_per_forward.toFixed(1),
    revisions: stats.revisions };
  if (end.left_out) facts["steps not kept"] = end.left_out;
  $("facts").append(...Object.entries(facts).map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
  const ramp = make("span", { className: "ramp", role: "img", "aria-label":
    `Colour: from none to ${scale.top} nats of entropy` });
  for (let level = 0; level < scale.levels; level++) ramp.append(filled(level));
  for (const tick of scale.ticks) {
    const mark = make("s", {}, String(tick));
    mark.style.left = `${(shade(tick) + 0.5) * 0.8}rem`;
    ramp.append(mark);
  }
  const sample = (kind, text) => make("span", { className: `cell ${kind}`, "aria-hidden": "true" },
    make("b", {}, text));
  const key = (...inside) => make("span", {}, ...inside);
  const all = new Set([...words.values()].map(([kind]) => kind));
  $("key").append(key(ramp, "nats"), key(sample("", "a"), "kept"),
    key(sample("loose", "a"), "noise again"), key(sample("revised", "a"), "revised"),
    ...(all.has("mark") ? [key(sample("", "◇"), "control token")] : []),
    ...(all.has("bytes") ? [key(sample("", "·"), "part of a character")] : []));
  const made = Object.entries(about.versions).map(([name, version]) => `${name} ${version}`);
  $("made").textContent = `Recorded on ${about.device} with ${made.join(", ")}; entropy bound ` +
    `${about.options.entropy_bound ?? "unknown"}, finished by ${end.finish_reason}.`;
  $("slider").max = frames.length - 1;
}

// ---- Hands. ----
const placeOf = (event) => {
  const cell = event.target.closest?.("#canvas .cell");
  return cell ? Number(cell.dataset.place) : null;
};
const step = (by) => { play(false); go(state.at + by); };
$("play").onclick = () => play(!state.playing);
$("back").onclick = () => step(-1);
$("on").onclick = () => step(1);
$("slider").oninput = () => { play(false); go(Number($("slider").value)); };
for (const one of document.querySelectorAll("[name=view]")) {
  one.onchange = () => { state.view = one.value; show(); };
}
$("canvas").onpointerover = (event) => {
  const place = placeOf(event);
  if (event.pointerType === "mouse" && !state.pinned && place !== null) inspect(place, false);
};
$("canvas").onpointerleave = () => { if (!state.pinned) close(); };
$("canvas").onmousedown = (event) => event.preventDefault(); // a click leaves the keys to the steps
document.onclick = (event) => {
  const place = placeOf(event);
  if (place === null) { if (!event.target.closest?.(".controls, #chart")) close(); return; }
  if (state.pinned && state.open === place) close(); else inspect(place, true);
};
$("canvas").addEventListener("focusin", (event) => {
  if (placeOf(event) !== null) inspect(placeOf(event), true);
});
$("canvas").addEventListener("focusout", close);
function rove(by) {
  const next = Math.max(0, Math.min(cells.length - 1, state.open + by));
  for (const cell of cells) cell.tabIndex = -1;
  cells[next].tabIndex = 0;
  cells[next].focus();
}
document.onkeydown = (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const { key, target } = event, inside = target.closest?.("#canvas") && state.open !== null;
  if (key === "Escape") { close(); return; }
  if (target.matches?.("input, select") && (target.type !== "range" || key !== " ")) return;
  if (key === " " && (inside || !target.matches?.("button"))) play(!state.playing);
  else if (key === "ArrowRight" || key === "ArrowLeft") {
    const by = key === "ArrowRight" ? 1 : -1;
    if (inside) rove(by); else step(by);
  } else if (key === "Home" || key === "End") step(key === "Home" ? -frames.length : frames.length);
  else return;
  event.preventDefault();
};
new ResizeObserver(() => {
  chart();
  point();
  if (state.open !== null) detail();
}).observe($("chart"));
addEventListener("scroll", () => { if (state.open !== null) detail(); }, { passive: true });

still();
chart();
const wanted = /^#(\d+)$/.exec(location.hash);
go(wanted ? Number(wanted[1]) : 0, false);
if (!wanted && !calm.matches) play(true);
})();
