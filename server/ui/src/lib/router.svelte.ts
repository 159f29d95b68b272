// Where the reader is, kept in the part of the address after '#', so that every view can be linked to.
import { tick } from "svelte";

export class Route {
  parts = $state<string[]>([]);
  values = $state<URLSearchParams>(new URLSearchParams());
  private places = new Map<string, number>(); // how far pages were scrolled when they were left
  private address = "";
  private arriving = false; // at a page that is not complete yet

  constructor() {
    history.scrollRestoration = "manual";
    window.addEventListener("hashchange", () => {
      this.arriving = true;
      this.read();
    });
    window.addEventListener("scroll", () => this.arriving || this.places.set(this.address, window.scrollY), { passive: true });
    this.read();
  }

  private read() {
    const [path = "", values = ""] = location.hash.replace(/^#\/?/, "").split("?");
    try {
      this.parts = path.split("/").filter(Boolean).map(decodeURIComponent);
    } catch {
      this.parts = [path, path]; // what cannot be decoded is the address of no page
    }
    this.values = new URLSearchParams(values);
    this.address = location.hash;
  }

  /**
   * Puts a page that is now complete where it was when it was left, a new one at its top, and the focus on its heading,
   * which announces it. Does nothing on the page that the reader is on already.
   */
  async settle(): Promise<void> {
    if (!this.arriving) return;
    await tick();
    this.arriving = false;
    const heading = document.querySelector<HTMLElement>("main h1") ?? document.querySelector<HTMLElement>("main");
    heading?.focus({ preventScroll: true });
    window.scrollTo(0, this.places.get(this.address) ?? 0);
  }
}

export const route = new Route();

export function link(dictionary?: string, ...rest: (string | number)[]): string {
  return "#/" + [dictionary, ...rest].filter((p) => p !== undefined).map(String).map(encodeURIComponent).join("/");
}

/** Changes values of the current view without adding to the history. */
export function setValues(changes: Record<string, string>): void {
  const values = new URLSearchParams(route.values);
  for (const [key, value] of Object.entries(changes)) value ? values.set(key, value) : values.delete(key);
  const text = values.toString();
  history.replaceState(null, "", link(...(route.parts as [string])) + (text ? `?${text}` : ""));
  route.values = values;
}

/** The title of the window: WCAG 2.4.2 wants one of every page. */
export function entitle(...parts: (string | number)[]): void {
  document.title = [...parts, "saedex"].join(" · ");
}
