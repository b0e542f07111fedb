"""``latest`` on Django: ``gunicorn 'benchmarks.peers.django_latest:application()'``, without any middleware."""

from collections.abc import Callable
from typing import Any

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from benchmarks.peers.reading import given_reading


def application() -> Callable[..., Any]:
    """The application."""
    reading = given_reading()
    scales = {reading["scale_id"]: reading}

    def latest(request: HttpRequest) -> JsonResponse:
        found = scales.get(request.GET.get("scale_id", "default"))
        if found is None:
            return JsonResponse({"ok": False}, status=404)
        return JsonResponse(
            {"ok": True, **found, "received_at": found["received_at"].isoformat(), "stale": False},
            json_dumps_params={"ensure_ascii": False, "separators": (",", ":")},
        )

    settings.configure(ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=(path("api/scale-gateway/latest/", latest),))
    django.setup()
    application: Callable[..., Any] = get_wsgi_application()
    return application
