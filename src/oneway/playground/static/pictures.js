// Pictures of 32 x 32 gray bytes, and bytes as text.

const SIDE = 32;

export function bytesOf(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

export function textOf(bytes) {
  return btoa(String.fromCharCode(...bytes));
}

export function paint(canvas, text) {
  const pixels = new ImageData(SIDE, SIDE);
  bytesOf(text).forEach((gray, at) => {
    pixels.data.set([gray, gray, gray, 255], 4 * at);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}
