// The page: take an image, send it to the service, show its predictions and class attention.

import { drawLegend, drawScene, drawTile, mean, patchAt, range } from "./overlay.js";

const LONGEST_SIDE = 960;
const SHORTEST_WIDTH = 640;
const SWEEP_MS = 800;
const TILE_WIDTH = 112;
const FIRST_SAMPLE = "horse";

const $ = (id) => document.getElementById(id);
const controls = { block: $("block"), head: $("head"), opacity: $("opacity"), smooth: $("smooth") };

let model = null;
let answer = null; // the response for the image
let image = null; // the image itself, null if the browser can't show its format
let patch = null; // index of the selected patch
let asking = null; // aborts the current request
let sweeping = 0;
let choices = 0; // images chosen so far: a sample that arrives late does not replace a later choice

// -- requests ----------------------------------------------------------------------------------------------------

async function ask(file, sample = "") {
  choices += 1;
  await loaded; // an image may be given before the model's description has arrived
  if (!model) return; // the error is shown
  asking?.abort();
  const own = (asking = new AbortController());
  stopSweep();
  $("error").hidden = true;
  document.querySelector(".stage").setAttribute("aria-busy", "true");
  markSample(sample);
  const began = performance.now();
  try {
    const form = new FormData();
    form.append("image", file, file.name || "pasted image");
    const [reply, shown] = await Promise.all([
      fetch(`${model.blocks ? "explain" : "predict"}?topk=5`, { method: "POST", body: form, signal: own.signal }),
      decode(file),
    ]);
    const body = await reply.json();
    if (own.signal.aborted) return;
    if (!reply.ok) {
      showError(body.error, body.remedy);
      return;
    }
    [answer, image, patch] = [model.blocks ? body : body[0], shown, null];
    showTop5();
    showTiming(reply.headers.get("server-timing"), performance.now() - began);
    sizeCanvas();
    drawAll();
  } catch (error) {
    if (error.name !== "AbortError") {
      showNoAnswer();
    }
  } finally {
    if (asking === own) {
      document.querySelector(".stage").setAttribute("aria-busy", "false");
    }
  }
}

/** The image, upright; null if the browser can't read its format. */
async function decode(file) {
  const image = new Image();
  const url = URL.createObjectURL(file);
  try {
    image.src = url;
    await image.decode();
    return image;
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(url);
  }
}

function showNoAnswer() {
  showError("The service does not respond.", "Check that it is running, then try again.");
}

function showError(problem, remedy) {
  const title = document.createElement("strong");
  title.textContent = problem;
  $("error").replaceChildren(title, document.createTextNode(remedy));
  $("error").hidden = false;
}

// -- predictions ------------------------------------------------------------------------------------------------

function showTop5() {
  const rows = answer.predictions.map(({ label, probability }) => {
    const row = document.createElement("li");
    const bar = element("span", "bar", "");
    bar.setAttribute("aria-hidden", "true");
    bar.style.transform = "scaleX(0)";
    requestAnimationFrame(() => requestAnimationFrame(() => (bar.style.transform = `scaleX(${probability})`)));
    row.append(bar, element("span", "label", label), element("span", "percent", percent(probability)));
    return row;
  });
  $("top5").replaceChildren(...rows);
  const [first, second] = answer.predictions;
  const then = second ? `, then ${second.label}, ${percent(second.probability)}` : "";
  $("live").textContent = `Prediction: ${first.label}, ${percent(first.probability)}${then}.`;
}

function showTiming(header, total) {
  const stations = Object.fromEntries(
    [...(header || "").matchAll(/(\w+);(?:dur|desc)="?([\d.]+)/g)].map(([, name, value]) => [name, Number(value)]),
  );
  const parts = [`${milliseconds(total)} in total`];
  if ("network" in stations) {
    parts.push(`decoding ${milliseconds(stations.decode)}`, `queue ${milliseconds(stations.queue)}`);
    parts.push(`network ${milliseconds(stations.network)} (batch of ${stations.batch})`);
  }
  $("timing").textContent = parts.join(" · ");
}

// -- the map -----------------------------------------------------------------------------------------------------

function weightsOf(block, head) {
  const blocks = block ? [answer.attention[block - 1]] : answer.attention;
  return mean(blocks.flatMap((heads) => (head ? [heads[head - 1]] : heads)));
}

function classTokenOf(block, head) {
  const blocks = block ? [answer.class_token[block - 1]] : answer.class_token;
  return mean(blocks.flatMap((heads) => (head ? [[heads[head - 1]]] : heads.map((weight) => [weight]))))[0];
}

function scene(block = Number(controls.block.value), head = Number(controls.head.value)) {
  return {
    image,
    size: answer.size,
    box: answer.box,
    grid: answer.grid,
    weights: weightsOf(block, head),
    opacity: Number(controls.opacity.value) / 100,
    look: look(),
    smooth: controls.smooth.checked,
    patch,
  };
}

const look = () => document.querySelector("input[name=look]:checked").value;

function sizeCanvas() {
  if (!model.blocks) return;
  const [width, height] = answer.size;
  const scale = Math.min(LONGEST_SIDE / Math.max(width, height), Math.max(1, SHORTEST_WIDTH / width));
  $("canvas").width = Math.max(1, Math.round(width * scale));
  $("canvas").height = Math.max(1, Math.round(height * scale));
}

function drawAll() {
  draw();
  if (!answer || !model.blocks) return;
  for (const button of $("maps").querySelectorAll("button")) {
    drawTile(button.firstChild, scene(Number(button.dataset.block), Number(button.dataset.head)), TILE_WIDTH);
  }
}

function draw() {
  showValues();
  if (!answer || !model.blocks) return;
  const now = scene();
  drawScene($("canvas"), now);
  drawLegend($("legend"), now.look);
  const [low, high] = range(now.weights);
  $("legend-low").textContent = percent(low);
  $("legend-high").textContent = percent(high);
  const [block, head] = [Number(controls.block.value), Number(controls.head.value)];
  const which = `${name("class block", block, model.blocks)}, ${name("head", head, model.heads)}`;
  $("canvas").setAttribute("aria-label", `${answer.file} with its class attention: ${which}`);
  $("caption").textContent =
    `Attention weights of the class token over ${now.weights.length} patches (softmax), ${which}. ` +
    `Colours run from the lowest to the highest weight of this map. ` +
    `The class token's attention to itself (${percent(classTokenOf(block, head))}) is omitted.` +
    (image ? "" : " The browser can't show this image format: the map is drawn on grey.");
  for (const button of $("maps").querySelectorAll("button")) {
    const chosen = Number(button.dataset.block) === block && Number(button.dataset.head) === head;
    button.setAttribute("aria-pressed", String(chosen));
  }
  showReading(now);
}

function showValues() {
  const [block, head] = [Number(controls.block.value), Number(controls.head.value)];
  $("block-value").textContent = block ? `${block} of ${controls.block.max}` : "mean";
  $("head-value").textContent = head ? `${head} of ${controls.head.max}` : "mean";
  $("opacity-value").textContent = `${controls.opacity.value} %`;
  controls.block.setAttribute("aria-valuetext", $("block-value").textContent);
  controls.head.setAttribute("aria-valuetext", $("head-value").textContent);
  controls.opacity.setAttribute("aria-valuetext", $("opacity-value").textContent);
}

function showReading(now) {
  if (patch === null) {
    $("reading").textContent = "Point at a patch to see its weight.";
    return;
  }
  const [row, column] = [Math.floor(patch / now.grid[1]) + 1, (patch % now.grid[1]) + 1];
  const times = now.weights[patch] * now.weights.length;
  $("reading").textContent =
    `Patch in row ${row}, column ${column}: ${percent(now.weights[patch])}, ${times.toFixed(1)} times uniform attention.`;
}

// -- weights of patches------------------------------------------------------------------------------------------

$("canvas").addEventListener("pointermove", (event) => {
  if (!answer) return;
  const place = $("canvas").getBoundingClientRect();
  const scale = $("canvas").width / place.width;
  readPatch(patchAt($("canvas"), scene(), (event.clientX - place.left) * scale, (event.clientY - place.top) * scale));
});
$("canvas").addEventListener("pointerleave", () => readPatch(null));
$("frame").addEventListener("blur", () => readPatch(null));
$("frame").addEventListener("keydown", (event) => {
  if (!answer) return;
  const [rows, columns] = answer.grid;
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (event.key === "Escape") readPatch(null);
  if (!(event.key in steps)) return;
  event.preventDefault();
  const from = patch ?? Math.floor(rows / 2) * columns + Math.floor(columns / 2);
  const [down, right] = patch === null ? [0, 0] : steps[event.key];
  const row = Math.min(rows - 1, Math.max(0, Math.floor(from / columns) + down));
  const column = Math.min(columns - 1, Math.max(0, (from % columns) + right));
  readPatch(row * columns + column);
});

function readPatch(next) {
  if (next === patch) return;
  patch = next;
  draw();
}

// -- controls ----------------------------------------------------------------------------------------------------

for (const control of Object.values(controls)) {
  control.addEventListener("input", () => {
    if (control === controls.head || control === controls.block) {
      stopSweep();
      draw();
    } else {
      drawAll(); // opacity and smoothing apply to all maps
    }
  });
}
for (const radio of document.querySelectorAll("input[name=look]")) {
  radio.addEventListener("change", drawAll);
}

$("sweep").addEventListener("click", () => {
  if (sweeping) {
    stopSweep();
    return;
  }
  $("sweep").setAttribute("aria-pressed", "true");
  const step = () => {
    const [head, block] = [controls.head, controls.block];
    if (Number(head.value) < Number(head.max)) {
      head.value = Number(head.value) + 1;
    } else {
      head.value = 1;
      block.value = (Number(block.value) % Number(block.max)) + 1;
    }
    draw();
  };
  if (!Number(controls.block.value)) controls.block.value = 1;
  step();
  sweeping = setInterval(step, SWEEP_MS);
});

function stopSweep() {
  clearInterval(sweeping);
  sweeping = 0;
  $("sweep").setAttribute("aria-pressed", "false");
}

function choose(block, head) {
  stopSweep();
  controls.block.value = block;
  controls.head.value = head;
  draw();
}

// -- sources of images ----------------------------------------------------------------------------------------

$("file").addEventListener("change", () => {
  if ($("file").files.length) ask($("file").files[0]);
  $("file").value = ""; // the same file may be chosen again
});

document.addEventListener("paste", (event) => {
  const file = event.clipboardData?.files[0];
  if (file) ask(file);
});

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const file = event.dataTransfer?.files[0];
  if (file) ask(file);
});

async function askSample({ path, label }) {
  const own = (choices += 1);
  markSample(path);
  try {
    const reply = await fetch(path);
    const blob = await reply.blob();
    if (own !== choices) return;
    if (reply.ok) {
      await ask(new File([blob], `${label}.png`, { type: blob.type }), path);
      return;
    }
  } catch {
    if (own !== choices) return;
  }
  showNoAnswer();
}

function markSample(path) {
  for (const button of $("samples").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.path === path));
  }
}

// -- start -------------------------------------------------------------------------------------------------------

function buildSamples() {
  const items = model.samples.map((sample) => {
    const image = new Image();
    image.src = sample.path;
    image.alt = "";
    const button = element("button", "", "");
    button.type = "button";
    button.dataset.path = sample.path;
    button.setAttribute("aria-label", `Sample image: ${sample.label}`);
    button.setAttribute("aria-pressed", "false");
    button.title = sample.label;
    button.append(image);
    button.addEventListener("click", () => askSample(sample));
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  $("samples").replaceChildren(...items);
  $("samples").hidden = $("samples-title").hidden = !items.length;
}

function buildMaps() {
  const groups = [];
  for (let block = 0; block <= model.blocks; block += 1) {
    const group = element("div", "", "");
    const tiles = element("div", "tiles", "");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", name("class block", block, model.blocks));
    group.append(element("h3", "", block ? `Class block ${block}` : `Mean over ${model.blocks} class blocks`), tiles);
    for (let head = 0; head <= model.heads; head += 1) {
      const button = element("button", "", "");
      button.type = "button";
      Object.assign(button.dataset, { block, head });
      button.setAttribute("aria-label", `Show ${name("class block", block, model.blocks)}, ${name("head", head, model.heads)}`);
      button.setAttribute("aria-pressed", "false");
      button.append(document.createElement("canvas"), head ? `head ${head}` : "mean");
      button.addEventListener("click", () => choose(block, head));
      tiles.append(button);
    }
    groups.push(group);
  }
  $("maps").replaceChildren(...groups);
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

const name = (what, number, count) => (number ? `${what} ${number} of ${count}` : `mean over ${count} ${what}s`);
const percent = (part) => `${(100 * part).toFixed(part < 0.1 ? 2 : 1)} %`;
const milliseconds = (value) => `${value.toFixed(value < 10 ? 1 : 0)} ms`;

async function loadModel() {
  try {
    const reply = await fetch("model");
    const body = await reply.json();
    if (!reply.ok) {
      showError(body.error, body.remedy);
      return;
    }
    model = body;
  } catch {
    showError("The service does not respond.", "Check that it is running, then load the page again.");
    return;
  }
  const size = model.img_size.join(" × ");
  $("model").textContent = `${model.model} · ${model.classes.toLocaleString("en")} classes · ${size} pixels`;
  for (const part of document.querySelectorAll("figure, .controls, .all")) part.hidden = !model.blocks;
  $("none").hidden = Boolean(model.blocks);
  controls.block.max = model.blocks;
  controls.head.max = model.heads;
  buildSamples();
  buildMaps();
  draw();
  const first = model.samples.find(({ label }) => label === FIRST_SAMPLE);
  if (first && !choices) askSample(first);
}

const loaded = loadModel();
