// Maps of weights as images: the colours, and how a map lies over its image.

// viridis at 17 equal steps: perceptually uniform, and read alike with every kind of colour vision.
const STEPS = [
  "440154", "48186a", "472d7b", "424086", "3b528b", "33638d", "2c728e", "26828e", "21918c",
  "1fa088", "28ae80", "3fbc73", "5ec962", "84d44b", "addc30", "d8e219", "fde725",
].map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));

/** Colour of a value in [0, 1]: [red, green, blue] in 0..255, between the two nearest steps. */
export function colour(value) {
  const place = Math.min(1, Math.max(0, value)) * (STEPS.length - 1);
  const below = Math.min(Math.floor(place), STEPS.length - 2);
  const part = place - below;
  return STEPS[below].map((side, i) => Math.round(side + part * (STEPS[below + 1][i] - side)));
}

/** Mean of several maps of the same length. */
export function mean(maps) {
  return maps[0].map((_, i) => maps.reduce((sum, map) => sum + map[i], 0) / maps.length);
}

/** Lowest and highest weight of a map. */
export function range(weights) {
  return [Math.min(...weights), Math.max(...weights)];
}

/** A canvas with one pixel a patch. In colours: opaque; as a spotlight: black where the weight is low. */
function mapCanvas(weights, [rows, columns], look = "colours") {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const [low, high] = range(weights);
  weights.forEach((weight, i) => {
    const value = high > low ? (weight - low) / (high - low) : 0.5;
    const pixel = look === "spotlight" ? [0, 0, 0, Math.round(255 * (1 - value))] : [...colour(value), 255];
    image.data.set(pixel, 4 * i);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

/** The bar of the legend, from the lowest weight to the highest. */
export function drawLegend(canvas, look) {
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x += 1) {
    const value = x / (canvas.width - 1);
    const grey = Math.round(255 * value);
    const [red, green, blue] = look === "spotlight" ? [grey, grey, grey] : colour(value);
    context.fillStyle = `rgb(${red} ${green} ${blue})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
}

/**
 * Draw an image and the map over the part of it that the model sees.
 *
 * scene: { image (or null), size: [width, height], box: [left, top, right, bottom], weights, grid, opacity, look,
 * smooth, patch (index of the patch to mark, or null) }, lengths in pixels of the image.
 */
export function drawScene(canvas, scene) {
  const context = canvas.getContext("2d");
  const scale = canvas.width / scene.size[0];
  const [left, top, right, bottom] = scene.box.map((side) => side * scale);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.globalAlpha = 1;
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (scene.image) {
    context.drawImage(scene.image, 0, 0, canvas.width, canvas.height);
  } else {
    context.fillStyle = "#808080";
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  dimOutside(context, canvas, [left, top, right, bottom]);
  layMap(context, scene, [left, top, right, bottom]);
  if (scene.patch !== null) {
    markPatch(context, scene, [left, top, right, bottom]);
  }
}

/** Draw a small image of what the model sees and the map over it; the canvas gets the form of that part. */
export function drawTile(canvas, scene, width) {
  const [left, top, right, bottom] = scene.box;
  canvas.width = width;
  canvas.height = Math.max(1, Math.round((width * (bottom - top)) / (right - left)));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  if (scene.image) {
    const scale = scene.image.naturalWidth / scene.size[0];
    const [x, y, w, h] = [left, top, right - left, bottom - top].map((side) => side * scale);
    context.drawImage(scene.image, x, y, w, h, 0, 0, canvas.width, canvas.height);
  }
  layMap(context, scene, [0, 0, canvas.width, canvas.height]);
}

/** Number of the patch at a point of the canvas, or null outside the part that the model sees. */
export function patchAt(canvas, scene, x, y) {
  const scale = canvas.width / scene.size[0];
  const [left, top, right, bottom] = scene.box.map((side) => side * scale);
  const [rows, columns] = scene.grid;
  const column = Math.floor(((x - left) / (right - left)) * columns);
  const row = Math.floor(((y - top) / (bottom - top)) * rows);
  return row < 0 || row >= rows || column < 0 || column >= columns ? null : row * columns + column;
}

function layMap(context, scene, [left, top, right, bottom]) {
  context.save();
  context.beginPath();
  context.rect(left, top, right - left, bottom - top);
  context.clip();
  context.globalAlpha = scene.opacity;
  context.imageSmoothingEnabled = scene.smooth;
  context.drawImage(mapCanvas(scene.weights, scene.grid, scene.look), left, top, right - left, bottom - top);
  context.restore();
}

function dimOutside(context, canvas, [left, top, right, bottom]) {
  if (left <= 0.5 && top <= 0.5 && right >= canvas.width - 0.5 && bottom >= canvas.height - 0.5) {
    return;
  }
  context.save();
  context.beginPath();
  context.rect(0, 0, canvas.width, canvas.height);
  context.rect(left, top, right - left, bottom - top);
  context.fillStyle = "rgb(0 0 0 / 0.55)";
  context.fill("evenodd");
  context.restore();
}

function markPatch(context, scene, [left, top, right, bottom]) {
  const [rows, columns] = scene.grid;
  const [width, height] = [(right - left) / columns, (bottom - top) / rows];
  const [x, y] = [left + (scene.patch % columns) * width, top + Math.floor(scene.patch / columns) * height];
  for (const [style, line] of [["#000", 5], ["#fff", 2]]) {
    context.strokeStyle = style;
    context.lineWidth = line;
    context.strokeRect(x, y, width, height);
  }
}
