import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

// One file with everything in it, styles too: a notebook loads it as a module (sae/publish/notebook.py).
export default defineConfig({
  plugins: [svelte({ compilerOptions: { css: "injected" } })],
  build: { outDir: "../static", emptyOutDir: false, target: "es2022", lib: { entry: "src/widget.svelte.ts", formats: ["es"], fileName: () => "widget.js" } },
});
