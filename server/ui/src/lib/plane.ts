// Draws many points into the pixels of a canvas, and finds the one under the pointer; 131,072 take a few milliseconds.
export interface View {
  x: number; // centre, 0 to 1
  y: number;
  scale: number; // 1 shows everything
}

export interface Points {
  x: Float32Array; // 0 to 1 from the left
  y: Float32Array; // 0 to 1 from the bottom
  colours: Uint32Array; // of each point, as `pixel` makes them
}

/** A colour as the bytes of a pixel, from "rgb(r, g, b)". */
export function pixel(colour: string): number {
  const [r = 0, g = 0, b = 0] = (colour.match(/[\d.]+/g) ?? []).map(Number);
  return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
}

const MARGIN = 0.03; // of the shorter side, around everything
const extent = (width: number, height: number, view: View) => Math.min(width, height) * (1 - 2 * MARGIN) * view.scale;

/** Where a place of the map is on the canvas. */
export function onCanvas(x: number, y: number, width: number, height: number, view: View): [number, number] {
  const size = extent(width, height, view);
  return [width / 2 + (x - view.x) * size, height / 2 - (y - view.y) * size];
}

/** Which place of the map a point of the canvas shows. */
export function onMap(px: number, py: number, width: number, height: number, view: View): [number, number] {
  const size = extent(width, height, view);
  return [view.x + (px - width / 2) / size, view.y - (py - height / 2) / size];
}

/** The view after the canvas was moved by (dx, dy), and enlarged by a factor around a point of it. */
export function moved(view: View, dx: number, dy: number, factor: number, around: [number, number], width: number, height: number): View {
  const [x, y] = onMap(around[0] - dx, around[1] - dy, width, height, view);
  const scale = Math.min(200, Math.max(0.8, view.scale * factor));
  const size = extent(width, height, { ...view, scale });
  return { x: x - (around[0] - width / 2) / size, y: y + (around[1] - height / 2) / size, scale };
}

/** Draws all points as squares of `side` pixels. */
export function draw(brush: CanvasRenderingContext2D, points: Points, view: View, side: number): void {
  const { width, height } = brush.canvas;
  const image = brush.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const size = extent(width, height, view);
  const left = width / 2 - view.x * size - side / 2, top = height / 2 + view.y * size - side / 2;
  for (let n = 0; n < points.x.length; n++) {
    const px = Math.round(left + (points.x[n] as number) * size), py = Math.round(top - (points.y[n] as number) * size);
    if (px < 0 || py < 0 || px + side > width || py + side > height) continue;
    const colour = points.colours[n] as number;
    for (let row = py * width; row < (py + side) * width; row += width) pixels.fill(colour, row + px, row + px + side);
  }
  brush.putImageData(image, 0, 0);
}

/** The point nearest to a place of the canvas, within `reach` pixels; -1 if none is. */
export function nearest(points: Points, px: number, py: number, width: number, height: number, view: View, reach: number): number {
  const [x, y] = onMap(px, py, width, height, view);
  let best = -1, least = (reach / extent(width, height, view)) ** 2;
  for (let n = 0; n < points.x.length; n++) {
    const square = ((points.x[n] as number) - x) ** 2 + ((points.y[n] as number) - y) ** 2;
    if (square < least) [best, least] = [n, square];
  }
  return best;
}
