// The API as the explorer sees it: types from the OpenAPI document, one function per route.
import { withKey } from "./key";
import { narrowed } from "./narrowed";
import type { components } from "./schema";

type Schemas = components["schemas"];
export type Capabilities = Schemas["Capabilities"];
export type DictionarySummary = Schemas["DictionarySummary"];
export type DictionaryDetail = Schemas["DictionaryDetail"];
export type TableItem = Schemas["TableItem"];
export type FeaturePage = Schemas["FeaturePage"];
export type ExplainerList = Schemas["ExplainerList"];
export type FeatureDetail = Schemas["FeatureDetail"];
export type Neighbour = Schemas["Neighbour"];
export type ScoreItem = Schemas["ScoreItem"];
export type ContextItem = Schemas["ContextItem"];
export type ContextList = Schemas["ContextList"];
export type SearchHit = Schemas["SearchHit"];
export type SearchResult = Schemas["SearchResult"];
export type Scatter = Schemas["Scatter"];
export type ConceptItem = Schemas["ConceptItem"];
export type ConceptList = Schemas["ConceptList"];
export type DocumentDetail = Schemas["DocumentDetail"];
export type DocumentText = Schemas["DocumentText"];
export type FeatureMap = Schemas["FeatureMap"];
export type JudgedItem = Schemas["JudgedItem"];
export type JudgedList = Schemas["JudgedList"];
export type ComparisonItem = Schemas["ComparisonItem"];
export type ComparisonDetail = Schemas["ComparisonDetail"];
export type FindingItem = Schemas["FindingItem"];
export type FindingDetail = Schemas["FindingDetail"];
export type FindingAbout = Schemas["FindingAbout"];
export type AttributionItem = Schemas["AttributionItem"];
export type DamageItem = Schemas["DamageItem"];
export type DownloadItem = Schemas["DownloadItem"];
export type EntryItem = Schemas["EntryItem"];
export type PeopleSummary = Schemas["PeopleSummary"];

const ROOT = "api/v1";
const BASE = `${ROOT}/dictionaries`;
export type Values = Record<string, string | number | boolean | null | undefined>;

/** Whether this is a site of some features: files stand in place of the API (`sae site`). */
export const isWidget = import.meta.env.MODE === "widget"; // in a notebook, which gives what is shown
export const isSite = isWidget || document.querySelector('meta[name="saedex"][content="site"]') !== null;

async function get<T>(path: string, method = "GET", sent?: string): Promise<T> {
  if (isSite) return file<T>(path);
  const response = await fetch(path, { method, headers: withKey(), ...(sent !== undefined && { body: sent }) });
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new Error(body?.error?.message ?? `the server answered ${response.status}`);
  return body as T;
}

async function file<T>(path: string): Promise<T> {
  const response = await fetch(`${path.split("?")[0]}.json`);
  if (!response.ok) throw new Error("this is not part of this site");
  return (await response.json()) as T;
}

function query(values: Values): string {
  const given = Object.entries(values).filter(([, v]) => v !== null && v !== undefined && v !== "" && v !== false);
  return new URLSearchParams(given.map(([k, v]) => [k, String(v)])).toString();
}

const at = (id: string) => `${BASE}/${encodeURIComponent(id)}`;

export const listDictionaries = () => get<DictionarySummary[]>(BASE);
export const listDamage = () => get<DamageItem[]>(`${ROOT}/damage`);
export const getDictionary = (id: string) => get<DictionaryDetail>(at(id));
export const getScatter = (id: string) => get<Scatter>(`${at(id)}/scatter`);
export const listConcepts = (id: string) => get<ConceptList>(`${at(id)}/concepts`);
export const getDocument = (id: string, document: number) => get<DocumentDetail>(`${at(id)}/documents/${document}`);
export const getDocumentText = (id: string, document: number, first: number, limit: number) => get<DocumentText>(`${at(id)}/documents/${document}/text?${query({ first, limit })}`);
export const getMap = (id: string) => get<FeatureMap>(`${at(id)}/map`);
export const listComparisons = (id: string) => get<ComparisonItem[]>(`${at(id)}/comparisons`);
export const getComparison = (id: string, other: string) => get<ComparisonDetail>(`${at(id)}/comparisons/${encodeURIComponent(other)}`);
export const listFindings = (id: string) => get<FindingItem[]>(`${at(id)}/findings`);
export const getFinding = (id: string, name: string) => get<FindingDetail>(`${at(id)}/findings/${encodeURIComponent(name)}`);
export const listFindingsAbout = (id: string, feature: number) => get<FindingAbout[]>(`${featureAddress(id, feature)}/findings`);
export const listAttributions = (id: string, feature: number) => get<AttributionItem[]>(`${featureAddress(id, feature)}/attributions`);
export const listDownloads = (id: string) => get<DownloadItem[]>(`${at(id)}/download`);
export const featureAddress = (id: string, feature: number) => `${at(id)}/features/${feature}`;
export const getFeature = (id: string, feature: number) => get<FeatureDetail>(featureAddress(id, feature));
export const getContexts = (id: string, feature: number) => get<ContextList>(`${featureAddress(id, feature)}/contexts`);
export const listJudged = (id: string, feature: number) => get<JudgedList>(`${featureAddress(id, feature)}/judged`);
export const tableAddress = (id: string, values: Values) => `${at(id)}/features?${query(values)}`;
export const listFeatures = async (id: string, values: Values) => {
  const page = await get<FeaturePage>(tableAddress(id, values));
  return isSite ? narrowed(page, values) : page;
};
export const listExamples = (id: string, limit: number) => get<FeaturePage>(`${at(id)}/examples?limit=${limit}`);
export const listExplainers = async (id: string): Promise<ExplainerList> => (isSite ? { items: [] } : get<ExplainerList>(`${at(id)}/explainers`));
const LONGEST = 1000; // letters of a search that go into an address
export const search = (id: string, values: { q: string; kind?: string; against?: string; limit?: number }) =>
  values.q.length + (values.against?.length ?? 0) > LONGEST
    ? get<SearchResult>(`${at(id)}/search`, "POST", JSON.stringify({ ...values, against: values.against || null }))
    : get<SearchResult>(`${at(id)}/search?${query(values)}`);
export const searchVector = (id: string, vector: number[], limit: number) => get<SearchResult>(`${at(id)}/search/vector`, "POST", JSON.stringify({ vector, limit }));
export const getCapabilities = () => get<Capabilities>(`${ROOT}/capabilities`);
export const getSelf = () => get<Schemas["Self"]>(`${ROOT}/people`);
export const listSaid = (id: string, feature: number) => get<Schemas["EntryList"]>(`${featureAddress(id, feature)}/people`);
export const say = (id: string, feature: number, entry: { kind: string; subject?: string; value: string | null }) => get<EntryItem>(`${featureAddress(id, feature)}/people`, "POST", JSON.stringify(entry));
export const undo = (entry?: number) => get<EntryItem>(`${ROOT}/people/undo?${query({ entry })}`, "POST");
export const summarizePeople = (id: string) => get<PeopleSummary>(`${at(id)}/people`);
export const getTriage = (id: string, limit: number) => get<Schemas["Triage"]>(`${at(id)}/triage?limit=${limit}`);
export const importEntries = (text: string) => get<Schemas["Imported"]>(`${ROOT}/people/entries`, "POST", text);
/** Entries as JSON lines; with `all` what was replaced or undone too. */
export const exportEntries = async (all: boolean) => (await fetch(`${ROOT}/people/entries?${query({ all })}`, { headers: withKey() })).text();
/** Text of a file of the dictionary that is on offer for download. */
export const getText = async (id: string, file: string) => {
  if (isSite) return null;
  const response = await fetch(`${at(id)}/download/${file}`, { headers: withKey() });
  return response.ok ? response.text() : null;
};
