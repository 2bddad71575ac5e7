// The server's questions, asked as JSON. Errors carry the server's own words.

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is `oneway playground` still running?");
  }
  const said = await response.json();
  if (!response.ok) {
    throw new Error(said.error);
  }
  return said;
}

export const fetchState = () => ask("/api/state");
export const fetchAnswers = (query, settings) => ask("/api/answers", { query, settings });
export const examine = (setting) => ask("/api/examine", setting);
export const fetchProgress = (setting) => ask("/api/progress", setting);
