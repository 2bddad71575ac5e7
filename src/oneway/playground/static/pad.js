// The drawing area: strokes of a pen, by mouse, finger or keyboard.
// A stroke is a list of points on a square of SIZE x SIZE.

const SIZE = 112;
const PEN = 9;
const STEP = 4;
const MOST_POINTS = 3000;
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Pad {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed;
    this.strokes = [];
    this.backdrop = null;
    this.pen = { x: SIZE / 2, y: SIZE / 2, down: false, shown: false };
    this.drawing = false;
    canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, () => { this.drawing = false; });
    }
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("focus", () => this.#showPen(canvas.matches(":focus-visible")));
    canvas.addEventListener("blur", () => this.#showPen(false));
  }

  get empty() {
    return this.strokes.length === 0;
  }

  // Show strokes, or a picture that was not drawn here.
  show(strokes, backdrop = null) {
    this.strokes = strokes;
    this.backdrop = backdrop;
    this.pen.down = false;
    this.#paint();
  }

  undo() {
    this.strokes = this.strokes.slice(0, -1);
    this.pen.down = false;
    this.#paint();
    this.changed();
  }

  // The drawing as SIZE x SIZE bytes, ink 255 on 0.
  bytes() {
    const small = document.createElement("canvas");
    small.width = small.height = SIZE;
    const brush = small.getContext("2d");
    ink(brush, this.strokes, 1);
    const { data } = brush.getImageData(0, 0, SIZE, SIZE);
    return Uint8Array.from({ length: SIZE * SIZE }, (_, at) => data[4 * at + 3]);
  }

  #point(event) {
    const box = this.canvas.getBoundingClientRect();
    const on = (at, start, length) => Math.min(SIZE - 1, Math.max(0, Math.round(SIZE * (at - start) / length)));
    return [on(event.clientX, box.left, box.width), on(event.clientY, box.top, box.height)];
  }

  #begin(event) {
    if (event.button !== 0) {
      return;
    }
    this.canvas.setPointerCapture(event.pointerId);
    this.drawing = true;
    this.#startStroke(this.#point(event));
  }

  #move(event) {
    if (this.drawing) {
      this.#extend(this.#point(event));
    }
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) {
      return;
    }
    if (event.key === " ") {
      this.pen.down = !this.pen.down;
      this.pen.shown = true;
      if (this.pen.down) {
        this.#startStroke([this.pen.x, this.pen.y]);
      } else {
        this.#paint();
      }
    } else if (event.key === "Backspace") {
      this.undo();
    } else if (event.key in MOVES) {
      const [across, down] = MOVES[event.key];
      this.pen.x = Math.min(SIZE - 1, Math.max(0, this.pen.x + STEP * across));
      this.pen.y = Math.min(SIZE - 1, Math.max(0, this.pen.y + STEP * down));
      this.pen.shown = true;
      if (this.pen.down) {
        this.#extend([this.pen.x, this.pen.y]);
      } else {
        this.#paint();
      }
    } else {
      return;
    }
    event.preventDefault();
  }

  #showPen(shown) {
    this.pen.shown = shown;
    this.pen.down = this.pen.down && shown;
    this.#paint();
  }

  #startStroke(point) {
    this.backdrop = null;
    this.strokes = [...this.strokes, [point]];
    this.#paint();
    this.changed();
  }

  #extend(point) {
    const stroke = this.strokes.at(-1);
    const [x, y] = stroke.at(-1);
    const points = this.strokes.reduce((sum, each) => sum + each.length, 0);
    if ((x === point[0] && y === point[1]) || points >= MOST_POINTS) {
      return;
    }
    stroke.push(point);
    this.#paint();
    this.changed();
  }

  #paint() {
    const { canvas } = this;
    const brush = canvas.getContext("2d");
    const scale = canvas.width / SIZE;
    brush.clearRect(0, 0, canvas.width, canvas.height);
    if (this.backdrop) {
      brush.imageSmoothingEnabled = false;
      brush.drawImage(this.backdrop, 0, 0, canvas.width, canvas.height);
    }
    ink(brush, this.strokes, scale);
    if (this.pen.shown) {
      brush.beginPath();
      brush.arc(this.pen.x * scale, this.pen.y * scale, PEN * scale / 2, 0, 2 * Math.PI);
      brush.lineWidth = 3;
      brush.strokeStyle = this.pen.down ? "#ff9d66" : "#62bedb";
      brush.stroke();
    }
    canvas.parentElement.classList.toggle("filled", !this.empty || this.backdrop !== null);
  }
}

function ink(brush, strokes, scale) {
  brush.lineWidth = PEN * scale;
  brush.lineCap = brush.lineJoin = "round";
  brush.strokeStyle = "#fff";
  for (const stroke of strokes) {
    brush.beginPath();
    brush.moveTo(scale * stroke[0][0], scale * stroke[0][1]);
    for (const [x, y] of stroke) {
      // A line to where it begins would not be drawn: a dot needs some length.
      brush.lineTo(scale * x + 0.01, scale * y);
    }
    brush.stroke();
  }
}
