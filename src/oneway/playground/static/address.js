// What is shown stands behind the # of the page's address: it outlives a reload, and never leaves the browser.

import { bytesOf, textOf } from "./pictures.js";

const BREAK = 255;

export function write(shown) {
  const parts = new URLSearchParams({ view: shown.view, defense: shown.defense });
  for (const options of Object.values(shown.options)) {
    for (const [name, value] of Object.entries(options)) {
      parts.set(name, String(value));
    }
  }
  if (shown.query.sample !== undefined) {
    parts.set("sample", String(shown.query.sample));
  } else {
    parts.set("drawing", packed(shown.query.strokes));
  }
  history.replaceState(null, "", `#${parts}`);
}

// Read what write wrote; whatever is not known stays as it is in `shown`.
export function read(shown, known) {
  const parts = new URLSearchParams(location.hash.slice(1));
  if (["one", "all"].includes(parts.get("view"))) {
    shown.view = parts.get("view");
  }
  if (parts.get("defense") in known.sliders) {
    shown.defense = parts.get("defense");
  }
  for (const [defense, sliders] of Object.entries(known.sliders)) {
    for (const [name, positions] of Object.entries(sliders)) {
      const value = positions.find((position) => String(position) === parts.get(name));
      if (value !== undefined) {
        shown.options[defense][name] = value;
      }
    }
  }
  const sample = Number(parts.get("sample") ?? NaN);
  if (Number.isInteger(sample) && known.samples[sample]) {
    shown.query = { sample };
  } else if (parts.has("drawing")) {
    shown.query = { strokes: unpacked(parts.get("drawing"), known.side) };
  }
}

function packed(strokes) {
  const bytes = strokes.flatMap((stroke) => [...stroke.flat(), BREAK]);
  return textOf(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function unpacked(text, side) {
  let bytes;
  try {
    bytes = [...bytesOf(text.replaceAll("-", "+").replaceAll("_", "/"))];
  } catch {
    return [];
  }
  const strokes = [];
  let stroke = [];
  while (bytes.length) {
    const x = bytes.shift();
    if (x === BREAK) {
      if (stroke.length) {
        strokes.push(stroke);
      }
      stroke = [];
    } else {
      const y = bytes.shift();
      if (x >= side || !(y < side)) {
        return [];
      }
      stroke.push([x, y]);
    }
  }
  return strokes;
}
