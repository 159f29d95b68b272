// The API as the explorer sees it: types from the OpenAPI document, one function per route.
import type { components } from "./schema";

type Schemas = components["schemas"];
export type DictionarySummary = Schemas["DictionarySummary"];
export type DictionaryDetail = Schemas["DictionaryDetail"];
export type FeatureItem = Schemas["FeatureItem"];
export type FeaturePage = Schemas["FeaturePage"];
export type ExplainerList = Schemas["ExplainerList"];
export type FeatureDetail = Schemas["FeatureDetail"];
export type ScoreItem = Schemas["ScoreItem"];
export type ContextItem = Schemas["ContextItem"];
export type ContextList = Schemas["ContextList"];
export type SearchResult = Schemas["SearchResult"];
export type ConceptItem = Schemas["ConceptItem"];
export type ConceptList = Schemas["ConceptList"];
export type DamageItem = Schemas["DamageItem"];
export type DownloadItem = Schemas["DownloadItem"];

const ROOT = "api/v1";
const BASE = `${ROOT}/dictionaries`;

async function get<T>(path: string): Promise<T> {
  const response = await fetch(path);
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new Error(body?.error?.message ?? `the server answered ${response.status}`);
  return body as T;
}

function query(values: Record<string, string | number | boolean | null | undefined>): string {
  const given = Object.entries(values).filter(([, v]) => v !== null && v !== undefined && v !== "" && v !== false);
  return new URLSearchParams(given.map(([k, v]) => [k, String(v)])).toString();
}

const at = (id: string) => `${BASE}/${encodeURIComponent(id)}`;

export const listDictionaries = () => get<DictionarySummary[]>(BASE);
export const listDamage = () => get<DamageItem[]>(`${ROOT}/damage`);
export const getDictionary = (id: string) => get<DictionaryDetail>(at(id));
export const listConcepts = (id: string) => get<ConceptList>(`${at(id)}/concepts`);
export const listDownloads = (id: string) => get<DownloadItem[]>(`${at(id)}/download`);
export const getFeature = (id: string, feature: number) => get<FeatureDetail>(`${at(id)}/features/${feature}`);
export const getContexts = (id: string, feature: number) =>
  get<ContextList>(`${at(id)}/features/${feature}/contexts`);
export const listFeatures = (id: string, values: Parameters<typeof query>[0]) =>
  get<FeaturePage>(`${at(id)}/features?${query(values)}`);
export const listExplainers = (id: string) => get<ExplainerList>(`${at(id)}/explainers`);
export const search = (id: string, q: string, kind: string) =>
  get<SearchResult>(`${at(id)}/search?${query({ q, kind, limit: 100 })}`);
