// Shows /openapi.json in Swagger UI, with a token if the gateway asks for one. The token is kept in this page only.
"use strict";

const form = document.getElementById("access");
const field = document.getElementById("token");
const problem = document.getElementById("problem");

function show(spec, token) {
  form.hidden = true;
  const ui = SwaggerUIBundle({
    spec,
    dom_id: "#interface",
    presets: [SwaggerUIBundle.presets.apis],
    layout: "BaseLayout",
    deepLinking: true,
    tryItOutEnabled: true,
    persistAuthorization: false,
    // Swagger UI would send the document to a public service.
    validatorUrl: null,
    onComplete: () => {
      if (token) {
        ui.preauthorizeApiKey("bearer", token);
      }
    },
  });
}

async function load(token) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch("/openapi.json", { headers });
  if (answer.ok) {
    show(await answer.json(), token);
    return;
  }
  if (answer.status !== 401 || token) {
    const { error, message } = await answer.json();
    problem.textContent = `${answer.status} ${error}: ${message}`;
  }
  form.hidden = false;
  field.focus();
}

function start(token) {
  problem.textContent = "";
  load(token).catch((error) => {
    problem.textContent = String(error);
    form.hidden = false;
  });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  start(field.value.trim());
});
start("");
