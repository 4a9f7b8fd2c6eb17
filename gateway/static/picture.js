// Boxes and labels over a photo, on the page and in a file.

const SVG = "http://www.w3.org/2000/svg";
const GOLDEN_RATIO = 0.618033988749895;

/** A class's colour [r, g, b]; the same that `visionmesh detect --draw` gives it. */
function rgb(classId) {
  const hue = ((classId * GOLDEN_RATIO) % 1) * 6;
  const value = 0.9, saturation = 0.85;
  const part = shift => {
    const k = (shift + hue) % 6;
    return Math.round(255 * (value - value * saturation * Math.max(0, Math.min(k, 4 - k, 1))));
  };
  return [part(5), part(3), part(1)];
}

export const colourOf = classId => `rgb(${rgb(classId).join(" ")})`;
const inkOn = classId => {
  const [red, green, blue] = rgb(classId);
  return 0.299 * red + 0.587 * green + 0.114 * blue < 140 ? "#fff" : "#000";
};

/** Where labels of these sizes go, in pixels of a frame: at their box's top, moved down until none hides another. */
function places(boxes, sizes, width, height) {
  const taken = [];
  return boxes.map((box, index) => {
    const size = sizes[index];
    const x = Math.max(0, Math.min(box.x1, width - size.width));
    let y = box.y1 >= size.height ? box.y1 - size.height : box.y1;
    for (const other of [...taken].sort((a, b) => a.y - b.y)) {
      const meets = x < other.x + other.width && x + size.width > other.x && y < other.y + other.height && y + size.height > other.y;
      if (meets && other.y + other.height + size.height <= height) y = other.y + other.height;
    }
    taken.push({ x, y, ...size });
    return { x, y };
  });
}

const textOf = found => `${found.label} ${Math.round(found.confidence * 100)}%`;
const scaled = (box, x, y) => ({ x1: box.x1 * x, y1: box.y1 * y, x2: box.x2 * x, y2: box.y2 * y });

/** Put detections over the photo in `frame`; each gets its `index` in the job, by which it can be picked. */
export function show(frame, image, detections) {
  const svg = frame.querySelector("svg"), labels = frame.querySelector("#labels");
  svg.replaceChildren();
  labels.replaceChildren();
  if (!image) return;
  svg.setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
  for (const found of [...detections].reverse()) {
    const rect = document.createElementNS(SVG, "rect");
    const { x1, y1, x2, y2 } = found.box;
    for (const [name, value] of Object.entries({ x: x1, y: y1, width: x2 - x1, height: y2 - y1, rx: 2 })) rect.setAttribute(name, value);
    rect.style.stroke = colourOf(found.class_id);
    rect.dataset.index = found.index;
    svg.append(rect);
  }
  const spans = detections.map(found => {
    const span = document.createElement("span");
    span.textContent = textOf(found);
    span.style.background = colourOf(found.class_id);
    span.style.color = inkOn(found.class_id);
    span.dataset.index = found.index;
    labels.append(span);
    return span;
  });
  const { clientWidth: width, clientHeight: height } = frame;
  const boxes = detections.map(found => scaled(found.box, width / image.width, height / image.height));
  const sizes = spans.map(span => ({ width: span.offsetWidth, height: span.offsetHeight }));
  places(boxes, sizes, width, height).forEach(({ x, y }, at) => { spans[at].style.transform = `translate(${x}px, ${y}px)`; });
}

/** Put the same detections over a frame of another size; the one that was picked stays picked. */
export function fit(frame, image, detections) {
  const picked = frame.querySelector("rect.picked")?.dataset.index ?? null;
  show(frame, image, detections);
  pick(frame, picked);
}

/** Make one detection stand out; none if `index` is null. */
export function pick(frame, index) {
  frame.classList.toggle("picking", index !== null);
  for (const part of frame.querySelectorAll("[data-index]")) part.classList.toggle("picked", part.dataset.index === String(index));
}

/** The photo with its detections as a JPEG blob, at full size. */
export async function draw(blob, image, detections) {
  const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const pen = canvas.getContext("2d");
  pen.drawImage(bitmap, 0, 0);
  bitmap.close();
  const side = Math.min(canvas.width, canvas.height), font = Math.max(side / 28, 11);
  pen.font = `600 ${font}px system-ui, sans-serif`;
  pen.lineWidth = Math.max(side / 200, 2);
  pen.textBaseline = "middle";
  const boxes = detections.map(found => scaled(found.box, canvas.width / image.width, canvas.height / image.height));
  detections.forEach((found, at) => {
    pen.strokeStyle = colourOf(found.class_id);
    pen.strokeRect(boxes[at].x1, boxes[at].y1, boxes[at].x2 - boxes[at].x1, boxes[at].y2 - boxes[at].y1);
  });
  const sizes = detections.map(found => ({ width: pen.measureText(textOf(found)).width + font * 0.7, height: font * 1.45 }));
  places(boxes, sizes, canvas.width, canvas.height).forEach(({ x, y }, at) => {
    pen.fillStyle = colourOf(detections[at].class_id);
    pen.fillRect(x, y, sizes[at].width, sizes[at].height);
    pen.fillStyle = inkOn(detections[at].class_id);
    pen.fillText(textOf(detections[at]), x + font * 0.35, y + sizes[at].height / 2);
  });
  return new Promise(done => canvas.toBlob(done, "image/jpeg", 0.92));
}
