"""`POST /v1/decisions`: from a body to a probability for each answer of closed sets.

    body -> DecisionBody -> input + each question -> Service: open images, decide -> Decidings -> decisions -> answers

All questions of a request share one reading of its input; one that shows an image of its own has its own.
"""

from __future__ import annotations

import asyncio

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from ..core.answers import AnswerSet
from ..errors import EdenError
from ..inference.readings import naming
from ..inference.request import Deciding
from .completions import as_turns, finish_reason, image_fetcher, while_connected
from .decision_schema import (
    DecisionBody,
    DecisionResponse,
    DecisionUsage,
    parse_decision,
    to_answer,
    to_answers,
    to_input,
    to_questions,
)
from .schema import check_model, to_request_error
from .service import Service


async def decide(service: Service, http: Request) -> Response:
    """Answers a request.

    Raises:
        ClientGone: the client hung up.
        RequestError: it is refused, with the field that is to blame, or took too long.
        EdenError: the engine is full or gone.
    """
    request = await service.in_thread(parse_decision, await http.body(), service.settings.limits)
    check_model(request.model, service.name)
    try:
        answers, parts = await service.in_thread(_submit, service, request)
    except EdenError as error:
        raise to_request_error(error, param=error.fault.where or "input") from error
    decidings = [deciding for _, deciding in parts]
    await while_connected(http, decidings, asyncio.gather(*(deciding.finished() for deciding in decidings)))
    for deciding in decidings:
        finish_reason(deciding)
    decisions = service.decisions(answers, parts)
    tokens = sum(deciding.prompt_tokens for deciding in decidings)
    response = DecisionResponse(
        answers=[to_answer(*each) for each in zip(request.questions, decisions, strict=True)],
        model=service.name,
        usage=DecisionUsage(input_tokens=tokens, total_tokens=tokens),
    )
    return JSONResponse(response.model_dump())


def _submit(service: Service, request: DecisionBody) -> tuple[list[AnswerSet], list[tuple[list[int], Deciding]]]:
    """Puts the questions into the queue; the answers that each may have, and what is decided together."""
    limits, fetch = service.settings.limits, image_fetcher(service)
    answers = []
    for number, question in enumerate(request.questions):
        with naming(f"questions[{number}].{'levels' if question.type == 'score' else 'choices'}"):
            answers.append(to_answers(question))
    shown, asked = to_input(request, limits, fetch), to_questions(request, limits, fetch)
    opened = service.open_images([*shown.values(), *asked.values()], [*shown, *asked])
    conversations = [as_turns([*opened[: len(shown)], question]) for question in opened[len(shown) :]]
    return answers, service.decide(conversations, answers, [f"questions[{number}]" for number in range(len(answers))])
