// The page of a feature for notebooks, as anywidget wants it: https://anywidget.dev
import { mount, unmount } from "svelte";
import style from "./style.css?inline";
import Widget from "./Widget.svelte";

export interface Shown {
  detail: unknown;
  contexts: unknown;
}

interface Model {
  get(name: string): unknown;
  set(name: string, value: unknown): void;
  save_changes(): void;
  on(event: string, listener: () => void): void;
  off(event: string, listener: () => void): void;
}

/** Rules of the whole page, for the part of a page that the widget has to itself. */
const scoped = style.replace(/:root\b/g, ".widget").replace(/(^|\})\s*body\s*\{/g, "$1.widget{padding:0.75rem;");

function render({ model, el }: { model: Model; el: HTMLElement }): () => void {
  const root = el.attachShadow({ mode: "open" });
  const rules = document.createElement("style");
  rules.textContent = scoped;
  root.append(rules);
  const dark = document.body.dataset["jpThemeLight"] === "false" || (document.body.dataset["jpThemeLight"] === undefined && matchMedia("(prefers-color-scheme: dark)").matches);
  let version = $state(0);
  const changed = () => (version += 1);
  model.on("change:shown", changed);
  const app = mount(Widget, {
    target: root,
    props: {
      shown: () => (void version, model.get("shown") as Shown),
      dictionary: String(model.get("dictionary")),
      theme: dark ? "dark" : "light",
      open: (feature: number) => {
        model.set("feature", feature);
        model.save_changes();
      },
    },
  });
  return () => {
    model.off("change:shown", changed);
    void unmount(app);
  };
}

export default { render };
