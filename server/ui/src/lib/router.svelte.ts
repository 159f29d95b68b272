// Where the reader is, kept in the part of the address after '#', so that every view can be linked to.
export class Route {
  parts = $state<string[]>([]);
  values = $state<URLSearchParams>(new URLSearchParams());

  constructor() {
    const read = () => {
      const [path = "", values = ""] = location.hash.replace(/^#\/?/, "").split("?");
      try {
        this.parts = path.split("/").filter(Boolean).map(decodeURIComponent);
      } catch {
        this.parts = [path, path]; // what cannot be decoded is the address of no page
      }
      this.values = new URLSearchParams(values);
    };
    window.addEventListener("hashchange", read);
    read();
  }
}

export const route = new Route();

export function link(dictionary?: string, ...rest: (string | number)[]): string {
  return "#/" + [dictionary, ...rest].filter((p) => p !== undefined).map(String).map(encodeURIComponent).join("/");
}

/** Changes values of the current view without adding to the history. */
export function setValues(changes: Record<string, string>): void {
  const values = new URLSearchParams(route.values);
  for (const [key, value] of Object.entries(changes)) {
    if (value) values.set(key, value);
    else values.delete(key);
  }
  const path = location.hash.split("?")[0];
  const text = values.toString();
  history.replaceState(null, "", text ? `${path}?${text}` : path);
  route.values = values;
}
