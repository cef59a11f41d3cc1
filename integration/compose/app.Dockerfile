# The application: curl, which anybody can start in it.
ARG APP_BASE=curlimages/curl:8.11.1
FROM ${APP_BASE}
ENTRYPOINT []
CMD ["sleep", "2147483647"]
