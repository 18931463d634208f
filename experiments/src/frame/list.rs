// SPDX-License-Identifier: GPL-2.0-only
//! What experiments there are, for `ls`.

use serde_json::{Value, json};

use super::{Axis, Definition, Experiment};
use crate::exp;

/// All, for programs.
#[must_use]
pub fn all() -> Value {
    exp::ALL.iter().map(|e| one(e.definition())).collect()
}

fn one(d: &Definition) -> Value {
    let axis =
        |a: &Axis| json!({"name": a.name, "about": a.about, "quick": a.quick, "full": a.full});
    json!({
        "name": d.name,
        "question": d.question,
        "axes": d.axes.iter().map(axis).collect::<Vec<_>>(),
        "systems": d.systems,
        "metrics": d.metrics.iter().map(|m| json!({"name": m.name, "about": m.about})).collect::<Vec<_>>(),
        "repeats": {"quick": d.repeats[0], "full": d.repeats[1]},
    })
}

/// All, for people.
#[must_use]
pub fn render() -> String {
    let of = |e: &&dyn Experiment| {
        let d = e.definition();
        let mut text = format!("{}\n    {}\n", d.name, d.question);
        for axis in d.axes {
            text += &format!(
                "    --set {}={}  {}\n",
                axis.name,
                axis.full.join(","),
                axis.about
            );
        }
        let systems: Vec<_> = d.systems.iter().map(ToString::to_string).collect();
        text + &format!("    --system {}\n", systems.join(","))
    };
    exp::ALL.iter().map(of).collect::<Vec<_>>().join("\n")
}
