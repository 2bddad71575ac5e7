// How values and verdicts are said.

export const NAMES = {
  none: "None",
  rounding: "Rounding",
  "adversarial-noise": "Adversarial noise",
  codebook: "Codebook",
  "label-only": "Label only",
};

const JOINING = { 0: "none", 0.01: "a little", 0.03: "some", 0.1: "much" };

export function valueText(name, value) {
  if (name === "budget") {
    return value === null ? "unlimited" : String(value);
  }
  return name === "rate_weight" ? JOINING[value] : String(value);
}

export function settingText({ defense, options }) {
  switch (defense) {
    case "rounding":
      return options.decimals === 1 ? "1 decimal" : `${options.decimals} decimals`;
    case "adversarial-noise": {
      const budget = options.budget === null ? "" : `, budget ${options.budget}`;
      return `step ${options.step_size}, ${options.steps} steps${budget}`;
    }
    case "codebook":
      return `${options.min_members} members per cell, joining: ${JOINING[options.rate_weight]}`;
    case "label-only":
      return "which digit, and nothing else";
    default:
      return "scores as they are";
  }
}

export function errorText(error) {
  return error.toFixed(4).replace(/^0/, "");
}

// Share of what clean scores give away beyond the label that still leaks, in percent; 0 if they give away nothing.
export function shareOf(finding) {
  return finding.closed_gap === null ? 0 : Math.round(100 * (1 - finding.closed_gap));
}

export function verdictText(finding) {
  if (!finding) {
    return "Measuring what this setting gives back…";
  }
  if (finding.closed_gap === null) {
    return "Here clean scores give away no more than the label does, so that there is nothing to hide.";
  }
  const share = shareOf(finding);
  if (!finding.final) {
    return share > 0
      ? `At this setting the scores give back at least ${share} % of what clean scores give away. An attacker for exactly this setting is in training…`
      : "The attackers that are there already get no more than the label out of this. One for exactly this setting is in training…";
  }
  if (share <= 0) {
    return "At this setting the scores give back nothing of what clean scores give away beyond the label.";
  }
  if (share > 100) {
    return `At this setting the scores give back ${share} % of what clean scores give away: more than without a defense.`;
  }
  return `At this setting the scores give back ${share} % of what clean scores give away beyond the label.`;
}
