// The table of a site: what the server does with words, ids, one sort column and pages, done here.
import type { FeaturePage, TableItem, Values } from "./api";

const words = (value: Values[string]) => String(value ?? "").toLowerCase().split(/\s+/).filter(Boolean);

export function narrowed(page: FeaturePage, values: Values): FeaturePage {
  const ids = values["ids"] ? new Set(String(values["ids"]).split(",").map(Number)) : undefined;
  const [column = "low"] = String(values["sort"] ?? "low").split(",") as (keyof TableItem)[];
  const sign = String(values["order"] ?? "desc").startsWith("asc") ? 1 : -1;
  const passing = page.items.filter((row) => (!ids || ids.has(row.feature)) && words(values["q"]).every((word) => row.label?.toLowerCase().includes(word)));
  passing.sort((a, b) => {
    const [x, y] = [a[column], b[column]];
    if (x === null || y === null) return Number(x === null) - Number(y === null); // those without a value last
    return sign * (typeof x === "string" ? x.localeCompare(String(y)) : Number(x) - Number(y)) || a.feature - b.feature;
  });
  const offset = Number(values["offset"] ?? 0), limit = Number(values["limit"] ?? 50);
  return { ...page, items: passing.slice(offset, offset + limit), total: passing.length, offset, limit };
}
