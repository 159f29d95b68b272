"""Statements about cities that are true, false, or neither because the city does not exist."""

from __future__ import annotations

import numpy as np

from sae.text.brought import ClassedTexts

CITIES = {
    "Paris": "France", "London": "England", "Berlin": "Germany", "Madrid": "Spain", "Rome": "Italy", "Lisbon": "Portugal",
    "Vienna": "Austria", "Athens": "Greece", "Dublin": "Ireland", "Oslo": "Norway", "Stockholm": "Sweden", "Helsinki": "Finland",
    "Copenhagen": "Denmark", "Warsaw": "Poland", "Prague": "Czechia", "Budapest": "Hungary", "Bucharest": "Romania",
    "Sofia": "Bulgaria", "Belgrade": "Serbia", "Zagreb": "Croatia", "Brussels": "Belgium", "Amsterdam": "the Netherlands",
    "Zurich": "Switzerland", "Reykjavik": "Iceland", "Moscow": "Russia", "Kyiv": "Ukraine", "Istanbul": "Turkey",
    "Cairo": "Egypt", "Nairobi": "Kenya", "Lagos": "Nigeria", "Accra": "Ghana", "Casablanca": "Morocco", "Tunis": "Tunisia",
    "Algiers": "Algeria", "Khartoum": "Sudan", "Kampala": "Uganda", "Johannesburg": "South Africa", "Luanda": "Angola",
    "Dakar": "Senegal", "Harare": "Zimbabwe", "Lusaka": "Zambia", "Addis Ababa": "Ethiopia", "Tokyo": "Japan",
    "Beijing": "China", "Seoul": "South Korea", "Bangkok": "Thailand", "Hanoi": "Vietnam", "Manila": "the Philippines",
    "Jakarta": "Indonesia", "Kuala Lumpur": "Malaysia", "Mumbai": "India", "Karachi": "Pakistan", "Dhaka": "Bangladesh",
    "Kathmandu": "Nepal", "Colombo": "Sri Lanka", "Kabul": "Afghanistan", "Tehran": "Iran", "Baghdad": "Iraq",
    "Damascus": "Syria", "Beirut": "Lebanon", "Amman": "Jordan", "Riyadh": "Saudi Arabia", "Doha": "Qatar",
    "Tashkent": "Uzbekistan", "Almaty": "Kazakhstan", "Tbilisi": "Georgia", "Yerevan": "Armenia", "Baku": "Azerbaijan",
    "Sydney": "Australia", "Auckland": "New Zealand", "Toronto": "Canada", "Chicago": "the United States",
    "Guadalajara": "Mexico", "Havana": "Cuba", "Kingston": "Jamaica", "Managua": "Nicaragua", "Bogota": "Colombia",
    "Caracas": "Venezuela", "Quito": "Ecuador", "Lima": "Peru", "La Paz": "Bolivia", "Santiago": "Chile",
    "Buenos Aires": "Argentina", "Montevideo": "Uruguay", "Asuncion": "Paraguay", "Sao Paulo": "Brazil",
    "Tallinn": "Estonia", "Riga": "Latvia", "Vilnius": "Lithuania", "Minsk": "Belarus", "Tirana": "Albania",
    "Ljubljana": "Slovenia", "Bratislava": "Slovakia", "Ulaanbaatar": "Mongolia", "Yangon": "Myanmar",
}  # fmt: skip
FORMS = (
    "The city of {city} is in {country}.",
    "{city} is a city in {country}.",
    "You find the city of {city} in {country}.",
)
STARTS = (
    "Bel",
    "Kar",
    "Mon",
    "Ver",
    "Tal",
    "Dor",
    "San",
    "Lun",
    "Bra",
    "Cor",
    "Ost",
    "Wil",
    "Par",
    "Neth",
    "Ulm",
    "Zar",
)
ENDS = (
    "ovia",
    "antis",
    "ield",
    "emark",
    "orro",
    "ussen",
    "akesh",
    "ington",
    "adura",
    "eloo",
    "avik",
    "orino",
    "estra",
    "imba",
)


def cities(seed: int) -> ClassedTexts:
    """Every city with its country, with another's, and an invented one in that; in three forms, grouped by city.

    After Savcisens and Eliassi-Rad 2025, arXiv 2506.23921: a statement about what does not exist is neither true nor false.
    """
    rng = np.random.default_rng(seed)
    names = list(CITIES)
    cycle = rng.permutation(len(names))
    elsewhere = np.empty_like(cycle)
    elsewhere[cycle] = np.roll(cycle, 1)  # nobody's own
    invented = rng.permutation([start + end for start in STARTS for end in ENDS])[: len(names)]

    out = ClassedTexts([], [], [])
    for city, place, no_city in zip(names, elsewhere, invented, strict=True):
        other = CITIES[names[place]]
        for form in FORMS:
            for name, country, label in (
                (city, CITIES[city], "true"), (city, other, "false"), (str(no_city), other, "neither"),
            ):  # fmt: skip
                out.texts.append(form.format(city=name, country=country))
                out.labels.append(label)
                out.groups.append(city)
    return out
