// How a number between -1 and 1 is coloured: orange above 0, blue below, the stronger the larger.
const MOST = 60; // percent of the colour, so that text on it stays readable

export function shade(share: number): string {
  const strength = Math.round(Math.min(1, Math.abs(share)) * MOST);
  return `background: color-mix(in srgb, var(${share < 0 ? "--less" : "--act"}) ${strength}%, transparent)`;
}
