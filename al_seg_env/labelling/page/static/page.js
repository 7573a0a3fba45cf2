// One region at a time: painted here, kept on the server as it is painted, and in this browser until that is done.
"use strict";

const IGNORE = 255;
const SAVE_MS = 1000, POLL_MS = 2000, HOLD_MS = 60000, IDLE_MS = 60000;
const MOST_UNDO_BYTES = 1e8, LARGEST_BRUSH = 200;
const at = (id) => document.getElementById(id);
const canvas = at("view"), screen2d = canvas.getContext("2d");

const person = localStorage.getItem("al-seg-env person") || newPerson();
let classes = [], chosen = 0, tool = "brush", hidden = false;
let task = null;       // the region: what the server tells of it, and what is painted, in `mask`
let view = { scale: 1, x: 0, y: 0 };  // screen = context * scale + (x, y), in pixels of the device
let stroke = null;     // what a held button or key is doing
let cross = null;      // where the keyboard paints, in the region's pixels
let pointer = null;    // where the mouse is, likewise
let spaceHeld = false, lastActive = performance.now(), lastHold = 0, loading = false;
let queue = Promise.resolve(), saveWaits = false;  // what is sent goes out in turn

function newPerson() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  const made = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  localStorage.setItem("al-seg-env person", made);
  return made;
}

// -- the server

class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function call(path, body, options = {}) {
  const sent = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), ...options,
  };
  let response;
  try {
    response = await fetch(path, sent);
  } catch {
    throw new Refused(0, "The server can't be reached. What you painted is kept in this browser. "
      + "If al-seg-env label has ended, start it again.");
  }
  if (!response.ok) {
    const told = await response.json().catch(() => ({}));
    throw new Refused(response.status, told.error || `The server answers ${response.status}.`);
  }
  return response.headers.get("content-type").startsWith("application/json") ? response.json() : response.blob();
}

function runsOf(mask) {
  const runs = [];
  for (let start = 0, i = 1; i <= mask.length; i++) {
    if (i === mask.length || mask[i] !== mask[start]) { runs.push(mask[start], i - start); start = i; }
  }
  return runs;
}

function fromRuns(runs, into) {
  for (let i = 0, start = 0; i < runs.length; i += 2) { into.fill(runs[i], start, start + runs[i + 1]); start += runs[i + 1]; }
  return into;
}

function work() {
  return {
    person, by: at("by").value.trim() || null, runs: runsOf(task.mask), seconds: task.seconds, clicks: task.clicks,
  };
}

const backupKey = (id) => `al-seg-env draft ${id}`;

function backUp() {
  if (!task || task.version === task.backedUp) return;
  try {
    localStorage.setItem(backupKey(task.id), JSON.stringify(work()));
    task.backedUp = task.version;
  } catch { /* the browser's store is full; the server has it within a second */ }
}

function inTurn(send) {
  queue = queue.then(send).catch((error) => notice(error.message));
  return queue;
}

function saveInTurn() {
  if (!task || saveWaits) return;
  saveWaits = true;
  inTurn(() => { saveWaits = false; return save(); });
}

async function save() {
  const of = task;
  if (!of || (of.version === of.saved && performance.now() - lastHold < HOLD_MS)) return;
  const version = of.version;
  backUp();
  lastHold = performance.now();
  try {
    if (version === of.saved) await call(`api/tasks/${of.id}/hold`, { person });
    else await call(`api/tasks/${of.id}/draft`, work());
    of.saved = version;
    if (of.version === version) localStorage.removeItem(backupKey(of.id));
    notice("");
  } catch (error) {
    notice(error.message);
    if (error.status === 409) await taken(of, error);
  }
}

// Someone else has the region; what was painted here is kept on the server.
async function taken(of, error) {
  localStorage.removeItem(backupKey(of.id));
  leave();
  await next(error.message);
}

async function next(told = "") {
  if (loading) return;
  loading = true;
  try {
    const found = await call("api/next", { person });
    showProgress(found.progress);
    notice(told);
    if (found.task) {
      const blob = await call(`api/tasks/${found.task.id}/context.jpg`);
      await begin(found.task, await createImageBitmap(blob));
    } else {
      const done = found.progress.budget !== null && found.progress.spent >= found.progress.budget;
      message(done ? "The budget is spent. al-seg-env export writes the masks."
        : found.progress.waiting ? "Others have the regions that are left. Yours come next."
          : found.progress.labelled ? "The network is learning. The next regions come in a moment."
        : "The first regions are being chosen.");
      setTimeout(next, POLL_MS);
    }
  } catch (error) {
    message(error.message);
    setTimeout(next, POLL_MS);
  } finally { loading = false; }
}

async function begin(told, bitmap) {
  const mask = new Uint8Array(told.height * told.width).fill(IGNORE);
  const overlay = document.createElement("canvas");
  overlay.width = told.width;
  overlay.height = told.height;
  const paint2d = overlay.getContext("2d");
  task = {
    ...told, bitmap, mask, overlay, paint2d, pixels: paint2d.createImageData(told.width, told.height),
    version: 0, saved: 0, backedUp: 0, undo: [], redo: [], segments: null, asked: false,
  };
  const kept = JSON.parse(localStorage.getItem(backupKey(told.id)) || "null");
  if (kept) {
    task.seconds = kept.seconds;
    task.clicks = kept.clicks;
    task.version = 1;
  }
  if (kept || told.draft) fromRuns(kept ? kept.runs : told.draft, mask);
  cross = null;
  stroke = null;
  lastHold = performance.now();
  at("image").textContent = told.image;
  at("predict").disabled = !told.prelabel;
  message("");
  colour(0, 0, task.width, task.height);
  fit();
  canvas.focus();
}

function submit() {
  if (!task) return;
  endStroke();
  if (!task.asked && task.mask.includes(IGNORE)) {
    task.asked = true;
    notice("Some of the region is unlabelled. Submit again to leave it so.");
    return;
  }
  const of = task;
  inTurn(async () => {
    if (task !== of) return;  // it was submitted twice
    backUp();
    try {
      showProgress((await call(`api/tasks/${of.id}/answer`, work())).progress);
    } catch (error) {
      notice(error.message);
      if (error.status === 409) await taken(of, error);
      return;
    }
    localStorage.removeItem(backupKey(of.id));
    leave();
    await next();
  });
}

function skip() {
  if (!task) return;
  endStroke();
  const of = task;
  inTurn(async () => {
    await save();
    if (task !== of || of.version !== of.saved) return;  // it is not kept yet
    await call(`api/tasks/${of.id}/skip`, { person });
    leave();
    await next();
  });
}

function leave() {
  task = null;
  at("image").textContent = "\u00a0";
  at("unlabelled").textContent = "\u00a0";
  draw();
}

// -- what is shown

function message(text) { at("message").textContent = text; }
function notice(text) { at("notice").textContent = text; }

function showProgress(progress) {
  const total = progress.class_pixels.reduce((sum, count) => sum + count, 0);
  document.querySelectorAll("#palette .share").forEach((share, label) => {
    share.textContent = total ? `${(100 * progress.class_pixels[label] / total).toFixed(1)} %` : "";
  });
  const spent = progress.unit === "regions" || progress.spent === null ? progress.labelled : progress.spent;
  at("bar").max = progress.budget || 1;
  at("bar").value = progress.budget ? spent : 0;
  at("progress").textContent = `${Math.round(spent)}${progress.budget ? ` of ${progress.budget}` : ""} ${progress.unit} labelled`
    + (progress.miou === null ? "" : `\nmean IoU ${progress.miou.toFixed(1)} %`);
}

function showPalette() {
  at("palette").replaceChildren(...classes.map((each, label) => {
    const item = document.createElement("li"), button = document.createElement("button"), swatch = document.createElement("i");
    const name = document.createElement("span"), share = document.createElement("span"), key = document.createElement("kbd");
    button.setAttribute("role", "radio");
    swatch.style.background = `rgb(${each.color.join()})`;
    name.className = "name";
    name.textContent = each.name;
    share.className = "share";
    key.textContent = label < 10 ? (label + 1) % 10 : "";
    button.append(swatch, name, share, key);
    button.addEventListener("click", () => choose(label));
    item.append(button);
    return item;
  }));
  choose(0);
}

function choose(label) {
  if (label < 0 || label >= classes.length) return;
  chosen = label;
  document.querySelectorAll("#palette button").forEach((button, i) => button.setAttribute("aria-checked", i === label));
  if (tool === "eraser") use("brush");
  canvas.focus();
}

function use(name) {
  tool = name;
  for (const each of ["brush", "eraser", "superpixel"]) at(each).setAttribute("aria-checked", each === name);
  if (name === "superpixel") segments();
  canvas.focus();
  draw();
}

function resize(size) {
  at("size").value = Math.max(1, Math.min(LARGEST_BRUSH, size));
  at("size-shown").textContent = at("size").value;
  draw();
}

async function segments() {
  const of = task;
  if (!of || of.segments || of.waits) return;
  of.waits = true;
  try {
    const found = await call(`api/tasks/${of.id}/superpixels`);
    of.segments = fromRuns(found.runs, new Int32Array(of.mask.length));
  } catch (error) {
    notice(error.message);
    if (task === of) use("brush");
  }
  of.waits = false;
}

function colour(left, top, right, bottom) {
  const { width, mask, pixels } = task;
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) {
      const label = mask[y * width + x], from = 4 * (y * width + x);
      const rgb = label === IGNORE ? null : classes[label].color;
      pixels.data[from + 3] = rgb ? 255 : 0;
      if (rgb) { pixels.data[from] = rgb[0]; pixels.data[from + 1] = rgb[1]; pixels.data[from + 2] = rgb[2]; }
    }
  }
  task.paint2d.putImageData(task.pixels, 0, 0, left, top, right - left, bottom - top);
  draw();
}

let drawing = false;
function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => { drawing = false; drawNow(); });
}

function drawNow() {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  screen2d.setTransform(1, 0, 0, 1, 0, 0);
  screen2d.clearRect(0, 0, width, height);
  if (!task) return;
  screen2d.setTransform(view.scale, 0, 0, view.scale, view.x, view.y);
  screen2d.imageSmoothingEnabled = view.scale < 1;
  screen2d.drawImage(task.bitmap, 0, 0);
  if (!hidden) {
    screen2d.globalAlpha = at("opacity").value / 100;
    screen2d.drawImage(task.overlay, task.left, task.top);
    screen2d.globalAlpha = 1;
  }
  const place = cross || pointer;
  if (place) {
    const x = task.left + place.x, y = task.top + place.y;
    const radius = tool === "superpixel" ? 3 / view.scale : Number(at("size").value) / 2;
    for (const [tint, line] of [["#000", 3], ["#fff", 1]]) {
      screen2d.strokeStyle = tint;
      screen2d.lineWidth = line / view.scale;
      screen2d.beginPath();
      screen2d.arc(x, y, radius, 0, 2 * Math.PI);
      if (cross) {
        const arm = 8 / view.scale;
        screen2d.moveTo(x - arm, y); screen2d.lineTo(x + arm, y);
        screen2d.moveTo(x, y - arm); screen2d.lineTo(x, y + arm);
      }
      screen2d.stroke();
    }
  }
  if (task.counted !== task.version) {
    task.unlabelled = task.mask.reduce((count, label) => count + (label === IGNORE), 0);
    task.counted = task.version;
  }
  const left = task.unlabelled;
  at("unlabelled").textContent = left ? `${(100 * left / task.mask.length).toFixed(1)} % unlabelled` : "all labelled";
  at("undo").disabled = !task.undo.length;
  at("redo").disabled = !task.redo.length;
}

function fit() {
  if (!task) return;
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth * ratio, height = canvas.clientHeight * ratio;
  const [rows, columns] = task.context_size;
  view.scale = Math.min(width / columns, height / rows);
  view.x = (width - columns * view.scale) / 2;
  view.y = (height - rows * view.scale) / 2;
  draw();
}

function zoom(factor, x, y) {
  const scale = Math.max(0.02, Math.min(64, view.scale * factor));
  view.x = x - (x - view.x) * scale / view.scale;
  view.y = y - (y - view.y) * scale / view.scale;
  view.scale = scale;
  draw();
}

function zoomAtCross(factor) {
  if (!task) return;
  const place = cross || { x: task.width / 2, y: task.height / 2 };
  zoom(factor, (task.left + place.x) * view.scale + view.x, (task.top + place.y) * view.scale + view.y);
}

function placeOf(event) {
  const ratio = window.devicePixelRatio || 1, box = canvas.getBoundingClientRect();
  return {
    x: ((event.clientX - box.left) * ratio - view.x) / view.scale - task.left,
    y: ((event.clientY - box.top) * ratio - view.y) / view.scale - task.top,
  };
}

// -- painting

function remember() {
  const most = Math.max(5, Math.floor(MOST_UNDO_BYTES / task.mask.length));
  task.undo.push(task.mask.slice());
  if (task.undo.length > most) task.undo.shift();
  task.redo = [];
}

function changed() {
  task.version += 1;
  task.asked = false;
  active();
}

function active() {
  const now = performance.now();
  if (task && now - lastActive < IDLE_MS) task.seconds += (now - lastActive) / 1000;
  lastActive = now;
}

// A pixel is painted if its centre lies within half the brush's size of the line, and those below its ends always.
function line(from, to) {
  const { width, height, mask } = task, radius = Number(at("size").value) / 2;
  const label = tool === "eraser" ? IGNORE : chosen;
  const left = Math.max(0, Math.floor(Math.min(from.x, to.x) - radius));
  const right = Math.min(width, Math.ceil(Math.max(from.x, to.x) + radius));
  const top = Math.max(0, Math.floor(Math.min(from.y, to.y) - radius));
  const bottom = Math.min(height, Math.ceil(Math.max(from.y, to.y) + radius));
  const dx = to.x - from.x, dy = to.y - from.y, length = dx * dx + dy * dy;
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) {
      const px = x + 0.5 - from.x, py = y + 0.5 - from.y;
      const along = length ? Math.max(0, Math.min(1, (px * dx + py * dy) / length)) : 0;
      const ox = px - along * dx, oy = py - along * dy;
      if (ox * ox + oy * oy <= radius * radius) mask[y * width + x] = label;
    }
  }
  for (const end of [from, to]) {
    const x = Math.floor(end.x), y = Math.floor(end.y);
    if (x >= 0 && y >= 0 && x < width && y < height) mask[y * width + x] = label;
  }
  if (right > left && bottom > top) colour(left, top, right, bottom);
  changed();
}

function segmentAt(place) {
  const x = Math.floor(place.x), y = Math.floor(place.y);
  if (x < 0 || y < 0 || x >= task.width || y >= task.height) return;
  if (!task.segments) { notice("The superpixels are being computed."); segments(); return; }
  const wanted = task.segments[y * task.width + x];
  for (let i = 0; i < task.mask.length; i++) if (task.segments[i] === wanted) task.mask[i] = chosen;
  colour(0, 0, task.width, task.height);
  changed();
}

function paint(from, to) {
  if (tool === "superpixel") segmentAt(to);
  else line(from, to);
}

function beginStroke(place) {
  if (!task) return;
  remember();
  task.clicks += 1;
  stroke = { last: place };
  paint(place, place);
}

function goOn(place) {
  paint(stroke.last, place);
  stroke.last = place;
}

function endStroke() { stroke = null; }

function replaceAll(make) {
  if (!task) return;
  endStroke();
  remember();
  task.clicks += 1;
  for (let i = 0; i < task.mask.length; i++) task.mask[i] = make(task.mask[i], i);
  colour(0, 0, task.width, task.height);
  changed();
}

const fillRest = () => replaceAll((label) => (label === IGNORE ? chosen : label));
const clearAll = () => replaceAll(() => IGNORE);
function predictRest() {
  if (!task || !task.prelabel) return;
  const predicted = fromRuns(task.prelabel, new Uint8Array(task.mask.length));
  replaceAll((label, i) => (label === IGNORE ? predicted[i] : label));
}

function back(from, to) {
  if (!task || !from.length) return;
  endStroke();
  to.push(task.mask);
  task.mask = from.pop();
  colour(0, 0, task.width, task.height);
  changed();
}
const undo = () => task && back(task.undo, task.redo);
const redo = () => task && back(task.redo, task.undo);

function move(dx, dy, fine) {
  if (!task) return;
  active();
  pointer = null;
  const step = fine ? 1 : Math.max(1, Math.round(Number(at("size").value) / 2));
  if (cross) {
    cross = {
      x: Math.max(0.5, Math.min(task.width - 0.5, cross.x + dx * step)),
      y: Math.max(0.5, Math.min(task.height - 0.5, cross.y + dy * step)),
    };
  } else {
    cross = { x: Math.floor(task.width / 2) + 0.5, y: Math.floor(task.height / 2) + 0.5 };
  }
  if (spaceHeld && stroke) goOn(cross);
  const x = (task.left + cross.x) * view.scale + view.x, y = (task.top + cross.y) * view.scale + view.y;
  const rim = 0.05 * Math.min(canvas.width, canvas.height);  // the view follows the cross
  view.x += Math.max(0, rim - x) - Math.max(0, x - (canvas.width - rim));
  view.y += Math.max(0, rim - y) - Math.max(0, y - (canvas.height - rim));
  draw();
}

// -- mouse and keys

canvas.addEventListener("pointerdown", (event) => {
  if (!task) return;
  canvas.setPointerCapture(event.pointerId);
  cross = null;
  active();
  if (event.button === 0) beginStroke(placeOf(event));
  else stroke = { pan: true, x: event.clientX, y: event.clientY };
});
canvas.addEventListener("pointermove", (event) => {
  if (!task) return;
  pointer = placeOf(event);
  if (event.movementX || event.movementY) cross = null;
  if (stroke && stroke.pan) {
    const ratio = window.devicePixelRatio || 1;
    view.x += (event.clientX - stroke.x) * ratio;
    view.y += (event.clientY - stroke.y) * ratio;
    stroke.x = event.clientX;
    stroke.y = event.clientY;
  } else if (stroke && !spaceHeld) {
    const passed = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const each of passed.length ? passed : [event]) goOn(placeOf(each));
  }
  draw();
});
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, endStroke);
canvas.addEventListener("pointerleave", () => { pointer = null; draw(); });
canvas.addEventListener("contextmenu", (event) => event.preventDefault());
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const ratio = window.devicePixelRatio || 1, box = canvas.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY / 500), (event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio);
}, { passive: false });

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const ACTIONS = {
  b: () => use("brush"), e: () => use("eraser"), s: () => use("superpixel"), f: fillRest, t: predictRest, x: clearAll,
  u: undo, r: redo, h: fit, n: skip, enter: submit, "+": () => zoomAtCross(1.25), "=": () => zoomAtCross(1.25),
  "-": () => zoomAtCross(0.8), "[": () => resize(Math.floor(Number(at("size").value) / 1.25)),
  "]": () => resize(Math.ceil(Number(at("size").value) * 1.25)), ",": () => choose(chosen - 1),
  ".": () => choose(chosen + 1), v: () => { hidden = !hidden; draw(); },
  "?": () => { const keys = document.querySelector("details"); keys.open = !keys.open; },
};

document.addEventListener("keydown", (event) => {
  const target = event.target, key = event.key.toLowerCase();
  if (target.tagName === "INPUT" && (target.type !== "range" || event.key in ARROWS)) return;
  if (event.ctrlKey || event.metaKey) {
    const meant = key === "z" ? (event.shiftKey ? redo : undo) : key === "y" ? redo : null;
    if (meant) { event.preventDefault(); meant(); }
    return;
  }
  if (event.altKey) return;
  if (target.tagName !== "CANVAS" && target !== document.body && (key === "enter" || key === " ")) return;  // a button's
  if (event.key in ARROWS) {
    event.preventDefault();
    move(...ARROWS[event.key], event.shiftKey);
  } else if (key === " ") {
    event.preventDefault();
    if (event.repeat || !task || stroke) return;
    if (!cross) move(0, 0, true);
    spaceHeld = true;
    beginStroke(cross);
  } else if (/^[0-9]$/.test(key)) {
    choose((Number(key) + 9) % 10);
  } else if (ACTIONS[key] && !(event.repeat && (key === "enter" || key === "n"))) {
    event.preventDefault();
    ACTIONS[key]();
  }
});
document.addEventListener("keyup", (event) => {
  if (event.key === " " && spaceHeld) { spaceHeld = false; endStroke(); }
});
window.addEventListener("blur", () => { spaceHeld = false; endStroke(); });

for (const [id, action] of Object.entries({
  brush: ACTIONS.b, eraser: ACTIONS.e, superpixel: ACTIONS.s, fill: fillRest, predict: predictRest, clear: clearAll,
  undo, redo, fit, skip, submit,
})) at(id).addEventListener("click", () => { action(); canvas.focus(); });
at("size").addEventListener("input", () => resize(at("size").value));
at("opacity").addEventListener("input", draw);
at("by").value = localStorage.getItem("al-seg-env name") || "";
at("by").addEventListener("input", () => localStorage.setItem("al-seg-env name", at("by").value));
window.addEventListener("resize", fit);
window.addEventListener("pagehide", () => {
  backUp();
  if (task && task.version !== task.saved) call(`api/tasks/${task.id}/draft`, work(), { keepalive: true }).catch(() => {});
});
setInterval(saveInTurn, SAVE_MS);

async function start() {
  try {
    const found = await call("api/session");
    classes = found.classes;
    showPalette();
    use("brush");
    showProgress(found.progress);
    await next();
  } catch (error) {
    message(error.message);
    setTimeout(start, POLL_MS);
  }
}
start();
