// How values and verdicts are said.

// In the order of the comparison.
export const NAMES = {
  none: "None",
  "adversarial-noise": "Adversarial noise",
  codebook: "Codebook",
  rounding: "Rounding",
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
      return `${options.min_members} members, joining: ${JOINING[options.rate_weight]}`;
    case "label-only":
      return "the digit alone";
    default:
      return "clean scores";
  }
}

export function errorText(error) {
  return error.toFixed(4).replace(/^0/, "");
}

// What stands in the place of G where no trained attacker does better than the label alone.
const FAILED = "attack failed";

// G as text; one below 1 is never rounded up to 1, which says too much.
export function gapText(finding) {
  if (finding.attack_failed) {
    return FAILED;
  }
  const gap = finding.closed_gap;
  return gap === null ? "none" : (gap < 1 ? Math.min(gap, 0.99) : gap).toFixed(2);
}

// Share of what clean scores give away beyond the label that is known to leak, in percent.
export function shareOf(finding) {
  return finding.closed_gap === null ? 0 : Math.round(100 * (1 - finding.closed_gap));
}

export function shareText(finding) {
  const share = Math.max(0, shareOf(finding));
  if (!finding.final) {
    return share > 0 ? `≥ ${share}\u00a0%` : "…";
  }
  return finding.attack_failed ? FAILED : `${share}\u00a0%`;
}

export function verdictText(finding) {
  if (!finding) {
    return "Measuring what this setting gives back…";
  }
  if (finding.closed_gap === null && !finding.attack_failed) {
    return "Here clean scores give away no more than the label does, so that there is nothing to hide.";
  }
  const share = shareOf(finding);
  if (!finding.final) {
    return share > 0
      ? `At this setting the scores give back at least ${share}\u00a0% of what clean scores give away. An attacker for exactly this setting is in training…`
      : "The attackers that are there already get no more than the label out of this. One for exactly this setting is in training…";
  }
  if (finding.attack_failed) {
    return "At this setting the attack failed: no trained attacker gets more out of the scores than the label alone. A stronger one might.";
  }
  if (share <= 0) {
    return "At this setting the scores give back less than 1\u00a0% of what clean scores give away beyond the label.";
  }
  if (share > 100) {
    return `At this setting the scores give back ${share}\u00a0% of what clean scores give away: more than without a defense.`;
  }
  return `At this setting the scores give back ${share}\u00a0% of what clean scores give away beyond the label.`;
}
