//! `egressctl explain`: what happens to a request, and why.

use egress_rules::{Answered, Answers, Complaint, Question};

use super::args::{Explain, Report as Format};
use super::output::{Done, Output};
use super::settings;
use super::threads::at_once;

/// Compiles the rules and asks them.
pub(super) fn main(args: &Explain) -> Done {
    let (sources, options) = settings::read(&args.input)?;
    let answers = Answers::compile(&sources, &options, at_once)?;
    let question = Question {
        url: &args.url,
        sni: args.sni.as_deref(),
        subset: args.subset.as_deref(),
        authority: settings::authority(&args.input),
        method: &args.method,
        headers: &args.headers,
        answered: Answered {
            repair: settings::repair(&args.input),
            header: args
                .answer
                .as_ref()
                .map(|(name, value)| (&**name, &**value)),
        },
    };
    let explanation = answers.explain(&question, &options)?;
    Ok(Output::lines(match args.output {
        Format::Json => {
            let text = serde_json::to_string_pretty(explanation.to_json())
                .map_err(|error| Complaint::us(format!("cannot write the answer: {error}")))?;
            text + "\n"
        }
        Format::Text => explanation.to_string(),
    }))
}
