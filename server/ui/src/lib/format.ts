// Numbers as people read them.
export function short(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 10000) return Math.round(value).toLocaleString("en");
  if (size >= 100) return value.toFixed(0);
  if (size >= 1) return value.toFixed(2);
  if (size >= 0.001) return value.toFixed(4);
  return value.toExponential(1);
}

export function percent(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  const share = value * 100;
  return (share >= 1 ? share.toFixed(1) : share >= 0.01 ? share.toFixed(2) : share.toPrecision(1)) + " %";
}

/** Whether labels of random directions are as good as this one. */
export function isWeak(row: { f2: number | null }, floor: number | null | undefined): boolean {
  return floor != null && row.f2 !== null && row.f2 <= floor;
}

export function bytes(value: number): string {
  return value >= 1e6 ? `${(value / 1e6).toFixed(1)} MB` : value >= 1e3 ? `${(value / 1e3).toFixed(1)} kB` : `${value} B`;
}

/** Text with white space, control characters and what else has no shape of its own made visible; emoji keep theirs. */
export function visible(text: string): string {
  return text
    .replace(/\n/g, "↵")
    .replace(/\t/g, "⇥")
    .replace(/(?![\ufe00-\ufe0f])[\p{Cc}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\ufff9-\ufffb]/gu, "·");
}

/** A number of a finding: four digits, whole numbers whole. */
export function figure(x: unknown): string {
  if (typeof x !== "number") return "–";
  if (Number.isInteger(x)) return x.toLocaleString("en");
  return Math.abs(x) >= 1e-4 && Math.abs(x) < 1e6 ? String(Number(x.toPrecision(4))) : x.toExponential(2);
}
