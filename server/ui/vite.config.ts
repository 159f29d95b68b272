import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

// Relative addresses, so that the explorer works under any path of a proxy.
export default defineConfig({
  base: "./",
  plugins: [svelte()],
  build: { outDir: "../static", emptyOutDir: true, target: "es2022" },
  server: { proxy: { "/api": "http://127.0.0.1:8000" } },
});
